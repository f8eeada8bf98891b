#!lua flags=allow-oom
-- Marks claimed jobs as started, with the records that RQ keeps of an execution.
-- KEYS: 1 claims of this node, 2 RQ's executions of this worker, 3.. the job hash of each job
-- ARGV: 1 node, 2 RQ's key prefix, 3 time now as RQ writes it, 4 seconds until RQ may take the
--       executions for abandoned, then for each job: id, execution, queue, time of start
-- Returns: the ids whose claim is gone, or about whose job somebody decided otherwise meanwhile
-- A key of another type costs no more than what would be written there.
-- What lacks a right fails, so that somebody gives it.
local function call(...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err and string.find(reply.err, 'ACL failure', 1, true) then
    error(reply)
  end
  return reply
end
local node, prefix, now, ttl = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local epoch = tonumber(redis.call('TIME')[1])
local gone = {}
local at = 5
for k = 3, #KEYS do
  local id, execution, queue, started = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  at = at + 4
  local claim = call('HGET', KEYS[1], id)
  local status = call('HGET', KEYS[k], 'status')
  local wanted = status == 'queued' or status == 'started'
  if claim == 'c ' .. execution .. ' ' .. queue and wanted then
    local member = id .. ':' .. execution
    call('HSET', KEYS[1], id, 's ' .. execution .. ' ' .. queue)
    call('HSET', KEYS[k], 'status', 'started', 'started_at', started,
      'last_heartbeat', now, 'worker_name', node)
    call('ZADD', prefix .. ':wip:' .. queue, epoch + ttl, member)
    local key = prefix .. ':execution:' .. member
    call('HSET', key, 'id', execution, 'job_id', id, 'created_at', epoch,
      'last_heartbeat', epoch, 'worker_name', node)
    call('EXPIRE', key, ttl)
    local executions = prefix .. ':executions:' .. id
    call('ZADD', executions, epoch + ttl + 60, execution)
    call('EXPIRE', executions, ttl + 60)
    call('SADD', KEYS[2], member)
  elseif claim ~= 's ' .. execution .. ' ' .. queue or not wanted then
    gone[#gone + 1] = id
  end
end
call('EXPIRE', KEYS[2], ttl + 60)
return gone
