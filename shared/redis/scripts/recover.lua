#!lua flags=allow-oom
-- Takes over what a node held whose lease has ended: what it had not started goes back to the
-- head of its queue uncharged, what it had started is charged one attempt. A job that may run at
-- most once counts as started, because short ones are never announced.
-- KEYS: 1 leases of the nodes, 2 claims of the lost node, 3 claims of the calling node,
--       4 RQ's executions of the lost node, 5 RQ's hash of the calling worker
-- ARGV: 1 RQ's key prefix, 2 the lost node, 3 attempts of a job whose producer said nothing of it,
--       4 the caller's fence
-- A node that has just registered does so with its own claims, which are a predecessor's.
-- Returns: {0} the lease has not ended after all, another node was faster, or the caller waits for
--          this call no more; {1, jobs given back, exhausted, ...} with each
--          exhausted job = {id, execution, queue, tag}, now claimed by the caller, to be failed
-- A key of another type costs no more than what would be written there: what failed halfway would
-- leave jobs in two places.
-- What lacks a right fails, so that somebody gives it.
local function call(...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err and string.find(reply.err, 'ACL failure', 1, true) then
    error(reply)
  end
  return reply
end
-- Whether RQ's code has ended an execution, of which its registry knows no more, and put the job
-- where it belongs: only what it retries or repeats is in a queue then.
local function ended_by_rq(job, status)
  if status == 'queued' or status == 'started' then
    local again = call('HMGET', job, 'retries_left', 'repeats_left', 'number_of_retries')
    return again[1] or again[2] or again[3]
  end
  return status == 'finished' or status == 'failed'
end

local prefix, lost, fence = ARGV[1], ARGV[2], ARGV[4]
if call('HGET', KEYS[5], 'farpool_fence') ~= fence then
  return {0}
end
local own = KEYS[2] == KEYS[3]
local lease = call('ZSCORE', KEYS[1], lost)
local now = call('TIME')
local over = type(lease) == 'string' and tonumber(lease) <= tonumber(now[1]) + tonumber(now[2]) / 1e6
if not own and not over then
  return {0}
end
if call('TYPE', KEYS[3]).ok ~= 'hash' then
  call('DEL', KEYS[3])
end
local reply, kept = {1, 0}, {}
local flat = call('HGETALL', KEYS[2])
for i = 1, #flat, 2 do
  local id = flat[i]
  local state, execution, queue = string.match(flat[i + 1], '^([csx]) ([%w_-]+) (.+)$')
  local job = prefix .. ':job:' .. id
  -- What is no claim, or no job, holds up nothing else.
  local status = queue and call('HGET', job, 'status')
  if state == 's' then
    local member = id .. ':' .. execution
    if call('ZREM', prefix .. ':wip:' .. queue, member) == 0 and ended_by_rq(job, status) then
      call('ZADD', prefix .. ':farpool:follow_ups', now[1], id)
      status = nil
    end
    call('DEL', prefix .. ':execution:' .. member)
    call('ZREM', prefix .. ':executions:' .. id, execution)
  end
  -- A status of its own means that RQ's maintenance or a user decided meanwhile.
  if status == 'queued' or status == 'started' then
    local tag = call('HGET', job, 'farpool') or ''
    local flags, own = string.match(tag, '^[0-9a-f]* ([dcolm]*) (%d+) %d+%.?%d*$')
    local allowed = tonumber(own or 0)
    if allowed == 0 then
      allowed = tonumber(ARGV[3])
    end
    local attempts = state == 'x' and allowed or 0
    if state == 's' or state == 'c' and string.find(flags or '', 'm') then
      attempts = call('HINCRBY', job, 'farpool_attempts', 1)
      -- What is no number has been meddled with.
      attempts = type(attempts) == 'table' and allowed or attempts
    end
    if attempts >= allowed then
      call('HSET', KEYS[3], id, 'x ' .. execution .. ' ' .. queue)
      kept[id] = true
      reply[#reply + 1] = {id, execution, queue, tag}
    elseif type(call('LPUSH', prefix .. ':queue:' .. queue, id)) == 'number' then
      call('HSET', job, 'status', 'queued')
      reply[2] = reply[2] + 1
    else
      -- Nowhere to go until its queue is a list again; not started, so that it costs no more.
      call('HSET', job, 'status', 'queued')
      call('HSET', KEYS[3], id, 'c ' .. execution .. ' ' .. queue)
      kept[id] = true
    end
  end
end
if own then
  for i = 1, #flat, 2 do
    if not kept[flat[i]] then
      call('HDEL', KEYS[2], flat[i])
    end
  end
  return reply
end
call('ZREM', KEYS[1], lost)
call('DEL', KEYS[2])
-- Its entry among RQ's workers; a node that comes back registers anew.
local worker = prefix .. ':worker:' .. lost
local queues = call('HGET', worker, 'queues')
for queue in string.gmatch(type(queues) == 'string' and queues or '', '[^,]+') do
  call('SREM', prefix .. ':workers:' .. queue, worker)
end
call('SREM', prefix .. ':workers', worker)
call('DEL', KEYS[4], worker)
return reply
