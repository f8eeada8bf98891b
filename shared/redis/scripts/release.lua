#!lua flags=allow-oom
-- Gives claimed jobs back to the head of their queues, in the order given.
-- KEYS: 1 claims of this node, 2 RQ's executions of this worker
-- ARGV: 1 RQ's key prefix, then for each job: id, execution, queue, and if its process was lost
--       while it ran, which counts as an attempt, the attempts that it may have, else ""
-- Returns: {id, ...} of jobs that have had all their attempts; they stay claimed ("x"), to be failed
-- A key of another type costs no more than what would be written there.
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

local prefix = ARGV[1]
local exhausted = {}
for at = #ARGV - 3, 2, -4 do
  local id, execution, queue, allowed = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local job = prefix .. ':job:' .. id
  local claim = call('HGET', KEYS[1], id)
  local rest = execution .. ' ' .. queue
  local started = claim == 's ' .. rest
  if claim == 'x ' .. rest then
    if allowed ~= '' then
      exhausted[#exhausted + 1] = id
    end
  elseif started or claim == 'c ' .. rest then
    local status = call('HGET', job, 'status')
    local exhausts, ended = false, false
    if started then
      local member = id .. ':' .. execution
      ended = call('ZREM', prefix .. ':wip:' .. queue, member) == 0 and ended_by_rq(job, status)
      call('DEL', prefix .. ':execution:' .. member)
      call('ZREM', prefix .. ':executions:' .. id, execution)
      call('SREM', KEYS[2], member)
    end
    -- Any other status means that RQ's maintenance or a user decided meanwhile.
    local wanted = not ended and (status == 'queued' or status == 'started')
    if ended then
      call('ZADD', prefix .. ':farpool:follow_ups', call('TIME')[1], id)
    end
    if wanted and allowed ~= '' then
      local attempts = call('HINCRBY', job, 'farpool_attempts', 1)
      -- What is no number has been meddled with.
      exhausts = type(attempts) == 'table' or attempts >= tonumber(allowed)
    end
    if exhausts then
      call('HSET', KEYS[1], id, 'x ' .. rest)
      exhausted[#exhausted + 1] = id
    else
      if wanted and type(call('LPUSH', prefix .. ':queue:' .. queue, id)) ~= 'number' then
        -- Nowhere to go until its queue is a list again, so it stays claimed.
        call('HSET', KEYS[1], id, 'c ' .. rest)
      else
        call('HDEL', KEYS[1], id)
      end
      if wanted then
        call('HSET', job, 'status', 'queued')
      end
    end
  end
end
return exhausted
