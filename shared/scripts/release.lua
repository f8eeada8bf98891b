#!lua flags=allow-oom
-- Gives claimed jobs back to the head of their queues, in the order given.
-- KEYS: 1 claims of this node, 2 RQ's executions of this worker
-- ARGV: 1 RQ's key prefix, then for each job: id, execution, queue, and if its process was lost
--       while it ran, which counts as an attempt, the attempts that it may have, else ""
-- Returns: {id, ...} of jobs that have had all their attempts; they stay claimed, to be failed
local prefix = ARGV[1]
local exhausted = {}
for at = #ARGV - 3, 2, -4 do
  local id, execution, queue, allowed = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local job = prefix .. ':job:' .. id
  local claim = redis.call('HGET', KEYS[1], id)
  local rest = execution .. ' ' .. queue
  local started = claim == 's ' .. rest
  if started or claim == 'c ' .. rest then
    local exhausts = false
    local status = redis.pcall('HGET', job, 'status')
    -- Any other status means that RQ's maintenance or a user decided meanwhile.
    local wanted = status == 'queued' or status == 'started'
    if wanted and allowed ~= '' then
      local attempts = redis.pcall('HINCRBY', job, 'farpool_attempts', 1)
      -- What is no number has been meddled with.
      exhausts = type(attempts) == 'table' or attempts >= tonumber(allowed)
    end
    if exhausts then
      exhausted[#exhausted + 1] = id
    else
      redis.call('HDEL', KEYS[1], id)
      if started then
        local member = id .. ':' .. execution
        redis.call('ZREM', prefix .. ':wip:' .. queue, member)
        redis.call('DEL', prefix .. ':execution:' .. member)
        redis.call('ZREM', prefix .. ':executions:' .. id, execution)
        redis.call('SREM', KEYS[2], member)
      end
      if wanted then
        redis.call('HSET', job, 'status', 'queued')
        redis.call('LPUSH', prefix .. ':queue:' .. queue, id)
      end
    end
  end
end
return exhausted
