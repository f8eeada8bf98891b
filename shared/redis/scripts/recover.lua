#!lua flags=allow-oom
-- Takes over the claims of a lost node: claimed jobs go back to the head of their queue uncharged,
-- started ones are charged an attempt first. A job that may run at most once counts as started,
-- because short jobs are never marked as started.
-- A node that has just registered calls it for its own name, to recover a predecessor's claims.
-- KEYS[1]  zset   rq:farpool:nodes            node -> when its lease ends
-- KEYS[2]  hash   rq:farpool:claims:LOST      job id -> "c|s|x EXECUTION QUEUE"
-- KEYS[3]  hash   rq:farpool:claims:NODE      the same of the calling node
-- KEYS[4]  set    rq:worker:LOST:executions   "JOB:EXECUTION"
-- KEYS[5]  hash   rq:worker:NODE              RQ's record of the caller, with its `farpool_fence`
-- ARGV[1]  RQ's key prefix
-- ARGV[2]  the lost node
-- ARGV[3]  attempts of a job whose tag does not set them
-- ARGV[4]  the caller's fence
-- Returns {0}: the lease has not ended after all, another node was faster, or the caller has
--              abandoned this call
--      or {1, number of jobs given back, {id, execution, queue, tag} of an exhausted job, ...}; the
--         caller now holds the exhausted jobs, to fail them
local prefix, lost, most_attempts, fence = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
if call('HGET', KEYS[5], 'farpool_fence') ~= fence then
  return {0}
end
local own = KEYS[2] == KEYS[3]
local now = server_time()
local lease = redis.call('ZSCORE', KEYS[1], lost)
if not own and not (lease and tonumber(lease) <= now) then
  return {0}
end
local reply = {1, 0}
local claims = redis.call('HGETALL', KEYS[2])
for i = 1, #claims, 2 do
  local id = claims[i]
  local state, execution, queue = string.match(claims[i + 1], '^(%a )([%w_-]+) (.+)$')
  -- A claim that a newer node wrote in another form must not block the others.
  local rest, kept = queue and execution .. ' ' .. queue, nil
  local job = prefix .. ':job:' .. id
  local status, text = unpack(queue and call('HMGET', job, 'status', 'farpool') or {})
  local ended = state == IS_STARTED
    and not end_execution(prefix, id, execution, queue, KEYS[4]) and ended_by_rq(job, status)
  if ended then
    redis.call('ZADD', prefix .. ':farpool:follow_ups', math.floor(now), id)
  elseif status == QUEUED or status == STARTED then
    -- Any other status means that RQ's maintenance or a user has ended the job.
    local tag = read_tag(text)
    local begun = state == IS_STARTED or state == IS_CLAIMED and tag and tag.once
    if state == IS_EXHAUSTED or begun and charge(job, tag, most_attempts) then
      kept = IS_EXHAUSTED
      reply[#reply + 1] = {id, execution, queue, text or ''}
    elseif put_back(prefix, id, queue) then
      reply[2] = reply[2] + 1
    else
      -- It stays until its queue is a list again; as claimed, so that it is not charged again.
      kept = IS_CLAIMED
    end
  end
  if kept then
    redis.call('HSET', KEYS[3], id, kept .. rest)
  end
  if not (own and kept) then
    redis.call('HDEL', KEYS[2], id)
  end
end
if not own then
  redis.call('ZREM', KEYS[1], lost)
  -- Removes the node from RQ's workers; if it comes back, it registers again.
  local worker = prefix .. ':worker:' .. lost
  local queues = call('HGET', worker, 'queues')
  for queue in string.gmatch(type(queues) == 'string' and queues or '', '[^,]+') do
    call('SREM', prefix .. ':workers:' .. queue, worker)
  end
  call('SREM', prefix .. ':workers', worker)
  redis.call('DEL', KEYS[4], worker)
end
return reply
