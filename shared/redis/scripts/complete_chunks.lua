#!lua flags=allow-oom
-- Records completions of one session's chunks, at most 1,000 a call, as complete.lua does for other
-- jobs. Chunks leave nothing but their outcomes, so that this takes a third of the time.
-- KEYS[1]  hash   rq:farpool:claims:NODE       job id -> "c|s|x EXECUTION QUEUE"
-- KEYS[2]  hash   rq:worker:NODE               RQ's record of the node
-- KEYS[3]  set    rq:worker:NODE:executions    "JOB:EXECUTION"
-- KEYS[4]  hash   rq:farpool:results:SESSION   job id -> outcome
-- KEYS[5]  stream rq:farpool:done:SESSION      ids of jobs that have an outcome
-- KEYS[6+] hash   rq:job:ID                    the job of each chunk
-- ARGV[1]  RQ's key prefix
-- ARGV[2]  queue
-- ARGV[3]  seconds to keep the results
-- ARGV[4]  seconds to keep the stream
-- ARGV[5]  "1" to announce the chunks in the stream, else ""
-- ARGV[6]  seconds that all the chunks ran
-- ARGV[7+] for each chunk: id, execution, outcome
-- Returns {number of stale completions, which were dropped, {},
--          {id of a chunk that got no outcome, because its key is not a job, ...}}
local prefix, queue, keep, keep_stream, announce, seconds = unpack(ARGV, 1, 6)
local JOBS_KEYS, WIDTH, FIRST = 5, 3, 7

local ids = {}
for a = FIRST, #ARGV, WIDTH do
  ids[#ids + 1] = ARGV[a]
end
local live = redis.call('HMGET', KEYS[1], unpack(ids))

local stale, malformed = 0, {}
local seen, settled, dead, outcomes, done = {}, {}, {}, {}, {}
for i, id in ipairs(ids) do
  local a = FIRST + (i - 1) * WIDTH
  local execution, outcome, job = ARGV[a + 1], ARGV[a + 2], KEYS[JOBS_KEYS + i]
  local rest = execution .. ' ' .. queue
  local started = live[i] == IS_STARTED .. rest
  if seen[id] or not started and live[i] ~= IS_CLAIMED .. rest
    and live[i] ~= IS_EXHAUSTED .. rest then
    -- The claim is gone, or belongs to another execution, which stays.
    stale = stale + 1
  else
    seen[id] = true
    settled[#settled + 1] = id
    local status = call('HGET', job, 'status')
    if status == QUEUED or status == STARTED then
      dead[#dead + 1] = job
      outcomes[#outcomes + 1] = id
      outcomes[#outcomes + 1] = outcome
      done[#done + 1] = id
    elseif type(status) == 'table' then
      malformed[#malformed + 1] = id
    else
      stale = stale + 1
    end
    if started then
      end_execution(prefix, id, execution, queue, KEYS[3])
    end
  end
end

if #settled > 0 then
  redis.call('HDEL', KEYS[1], unpack(settled))
end
if #done > 0 then
  redis.call('DEL', unpack(dead))
  redis.call('HSET', KEYS[4], unpack(outcomes))
  if redis.call('TTL', KEYS[4]) < tonumber(keep) then
    redis.call('EXPIRE', KEYS[4], keep)
  end
  if announce == '1' then
    redis.call('XADD', KEYS[5], 'MAXLEN', '~', '10000', '*', 'ids', table.concat(done, ' '))
    redis.call('EXPIRE', KEYS[5], keep_stream)
  end
  if call('EXISTS', KEYS[2]) == 1 then
    call('HINCRBY', KEYS[2], 'successful_job_count', #done)
    call('HINCRBYFLOAT', KEYS[2], 'total_working_time', seconds)
  end
end
return {stale, {}, malformed}
