#!lua flags=allow-oom
-- Gives claimed jobs back to the head of their queues, in the order given.
-- KEYS[1]  hash   rq:farpool:claims:NODE      job id -> "c|s|x EXECUTION QUEUE"
-- KEYS[2]  set    rq:worker:NODE:executions   "JOB:EXECUTION"
-- ARGV[1]  RQ's key prefix
-- ARGV[2]  "", or, if each job cost its process and is to be charged an attempt: the attempts of a
--          job whose tag does not set them
-- ARGV[3+] for each job: id, execution, queue
-- Returns {id of an exhausted job, which the node still holds and has to fail, ...}
local prefix, most_attempts = ARGV[1], tonumber(ARGV[2])
local FIRST, WIDTH = 3, 3
local exhausted = {}
for a = #ARGV - WIDTH + 1, FIRST, -WIDTH do
  local id, execution, queue = unpack(ARGV, a, a + WIDTH - 1)
  local job = prefix .. ':job:' .. id
  local rest = execution .. ' ' .. queue
  local claim = redis.call('HGET', KEYS[1], id)
  local started = claim == IS_STARTED .. rest
  if claim == IS_EXHAUSTED .. rest then
    if most_attempts then
      exhausted[#exhausted + 1] = id
    end
  elseif started or claim == IS_CLAIMED .. rest then
    local status, tag = unpack(call('HMGET', job, 'status', 'farpool'))
    local ended = started
      and not end_execution(prefix, id, execution, queue, KEYS[2]) and ended_by_rq(job, status)
    if ended then
      redis.call('ZADD', prefix .. ':farpool:follow_ups', redis.call('TIME')[1], id)
    end
    -- Any other status means that RQ's maintenance or a user has ended the job.
    if ended or status ~= QUEUED and status ~= STARTED then
      redis.call('HDEL', KEYS[1], id)
    elseif most_attempts and charge(job, read_tag(tag), most_attempts) then
      redis.call('HSET', KEYS[1], id, IS_EXHAUSTED .. rest)
      exhausted[#exhausted + 1] = id
    elseif put_back(prefix, id, queue) then
      redis.call('HDEL', KEYS[1], id)
    else
      -- It stays until its queue is a list again.
      redis.call('HSET', KEYS[1], id, IS_CLAIMED .. rest)
    end
  end
end
return exhausted
