#!lua
-- Records completions, at most 1,000 a call. A job takes the first one under its live claim, unless
-- it was canceled, deleted or failed by RQ's maintenance meanwhile.
-- KEYS[1]  hash   rq:farpool:claims:NODE      job id -> "c|s|x EXECUTION QUEUE"
-- KEYS[2]  hash   rq:worker:NODE              RQ's record of the node
-- KEYS[3]  set    rq:worker:NODE:executions   "JOB:EXECUTION"
-- KEYS[4+] for each job:
--          hash   rq:job:ID                   the job
--          stream rq:results:ID               RQ's results of the job
--          set    rq:job:ID:dependents        jobs that wait for the job
-- ARGV[1]  RQ's key prefix
-- ARGV[2]  node
-- ARGV[3]  least seconds to keep a session's results
-- ARGV[4+] for each job: id, execution, queue,
--          "ok", "failed", or "recorded" by RQ's code; chunks have complete_chunks.lua,
--          start and end as RQ writes times, start and end in seconds since the epoch,
--          seconds to keep the result: "" for the default, "-1" for ever, "0" not at all,
--          session or "", "1" to announce the job to the session or "", outcome,
--          for RQ's stream the return value or traceback, encoded as RQ does, or "",
--          and the signature of that or ""
-- Returns {number of stale completions, which were dropped,
--          {id of an ended job that needs a follow-up: dependents, a slot of a rate limit, ...},
--          {id of a job that got no outcome, because its keys are not RQ's records, ...}}
local prefix, node = ARGV[1], ARGV[2]
local JOBS_KEYS, JOBS, KEYS_WIDTH, WIDTH = 3, 3, 3, 14
-- Least seconds to keep an ended job and its dependents for the follow-up.
local DEPENDED_SECONDS = 60
-- The caller does the follow-up at once; if it is lost, another node does so this much later.
local FOLLOW_UP_SECONDS = 15
local epoch = tonumber(redis.call('TIME')[1])

local ids, dependents = {}, {}
for i = 1, (#KEYS - JOBS_KEYS) / KEYS_WIDTH do
  ids[i] = ARGV[JOBS + (i - 1) * WIDTH + 1]
  dependents[i] = KEYS[JOBS_KEYS + i * KEYS_WIDTH]
end
local any_dependents = call('EXISTS', unpack(dependents)) > 0
local live = redis.call('HMGET', KEYS[1], unpack(ids))

local stale, depended, malformed = 0, {}, {}
local settled, dead, finished, failed, outcomes, done = {}, {}, {}, {}, {}, {}
local successes, failures, seconds = 0, 0, 0

local function group(groups, name)
  local list = groups[name]
  if not list then
    list = {}
    groups[name] = list
  end
  return list
end

-- Writes RQ's records of a job's end; false if its stream has the wrong type.
-- Tables of arguments would cost a tenth of the script's time.
local function record(i, a, ok)
  local id, execution, queue, _, began_at, ended_at, began, ended, ttl, session, _, _, value,
    signature = unpack(ARGV, a + 1, a + WIDTH)
  local job, stream = KEYS[i * KEYS_WIDTH + 1], KEYS[i * KEYS_WIDTH + 2]
  local has_dependents = any_dependents and call('EXISTS', dependents[i]) == 1
  if ok and ttl == '0' and not has_dependents then
    dead[#dead + 1] = job
    return true
  end
  local kind, added = ok and '1' or '2', nil
  if value == '' then
    added = call('XADD', stream, '*', 'type', kind, 'worker_name', node, 'execution_id',
      execution, 'execution_started_at', began, 'execution_ended_at', ended)
  else
    added = call('XADD', stream, '*', 'type', kind, 'worker_name', node, 'execution_id',
      execution, 'execution_started_at', began, 'execution_ended_at', ended,
      ok and 'return_value' or 'exc_string', value)
  end
  if type(added) == 'table' and added.err then
    return false
  end
  local status = ok and FINISHED or FAILED
  if signature == '' then
    call('HSET', job, 'status', status, 'started_at', began_at, 'ended_at', ended_at,
      'worker_name', node)
  else
    call('HSET', job, 'status', status, 'started_at', began_at, 'ended_at', ended_at,
      'worker_name', node, 'farpool_result_signature', signature)
  end
  local keep = ttl ~= '' and ttl or (ok and '500' or '31536000')
  local list = group(ok and finished or failed, queue)
  if keep == '-1' then
    call('PERSIST', stream)
    list[#list + 1] = ok and '+inf' or '-1'
  else
    if has_dependents then
      keep = math.max(tonumber(keep), DEPENDED_SECONDS)
      call('EXPIRE', dependents[i], keep)
    end
    call('EXPIRE', job, keep)
    call('EXPIRE', stream, keep)
    if session == '' then
      call('EXPIRE', prefix .. ':job::' .. id .. ':dependencies', keep)
    end
    list[#list + 1] = epoch + keep
  end
  list[#list + 1] = id
  local slot = not ok and call('HGET', job, 'rate_limit_key')
  if has_dependents or type(slot) == 'string' and slot ~= '' then
    depended[#depended + 1] = id
    redis.call('ZADD', prefix .. ':farpool:follow_ups', epoch + FOLLOW_UP_SECONDS, id)
  end
  return true
end

for i = 1, #ids do
  local a = JOBS + (i - 1) * WIDTH
  local id, execution, queue, how, _, _, began, ended, ttl, session, announce, outcome =
    unpack(ARGV, a + 1, a + 12)
  local job = KEYS[i * KEYS_WIDTH + 1]
  local rest = execution .. ' ' .. queue
  local claimed = live[i] == IS_CLAIMED .. rest
  local started = not claimed and live[i] == IS_STARTED .. rest

  if settled[id] or not claimed and not started and live[i] ~= IS_EXHAUSTED .. rest then
    -- The claim is gone, or belongs to another execution, which stays.
    stale = stale + 1
  else
    local ok = how ~= 'failed'
    local recorded = false
    local status = how ~= 'recorded' and call('HGET', job, 'status')
    if status == QUEUED or status == STARTED then
      if record(i, a, ok) then
        recorded = true
        if not ok then
          call('HDEL', job, 'farpool_attempts')
        end
      else
        malformed[#malformed + 1] = id
      end
    elseif type(status) == 'table' then
      malformed[#malformed + 1] = id
    elseif how ~= 'recorded' then
      stale = stale + 1
    end

    settled[id] = true
    settled[#settled + 1] = id
    if started then
      end_execution(prefix, id, execution, queue, KEYS[3])
    end
    -- RQ's code has counted the jobs that it recorded.
    if recorded then
      successes = successes + (ok and 1 or 0)
      failures = failures + (ok and 0 or 1)
      seconds = seconds + ended - began
    end
    if recorded and session ~= '' then
      local list = group(outcomes, session)
      list.keep = math.max(list.keep or tonumber(ARGV[3]), tonumber(ttl) or 0)
      list[#list + 1] = id
      list[#list + 1] = outcome
      if announce == '1' then
        list = group(done, session)
        list[#list + 1] = id
      end
    end
  end
end

if #settled > 0 then
  redis.call('HDEL', KEYS[1], unpack(settled))
end
if #dead > 0 then
  redis.call('DEL', unpack(dead))
end
for queue, members in pairs(finished) do
  call('ZADD', prefix .. ':finished:' .. queue, unpack(members))
end
for queue, members in pairs(failed) do
  call('ZADD', prefix .. ':failed:' .. queue, unpack(members))
end
for session, list in pairs(outcomes) do
  local key = prefix .. ':farpool:results:' .. session
  redis.call('HSET', key, unpack(list))
  if redis.call('TTL', key) < list.keep then
    redis.call('EXPIRE', key, list.keep)
  end
end
for session, list in pairs(done) do
  local key = prefix .. ':farpool:done:' .. session
  redis.call('XADD', key, 'MAXLEN', '~', '10000', '*', 'ids', table.concat(list, ' '))
  redis.call('EXPIRE', key, ARGV[3])
end
if successes + failures > 0 and call('EXISTS', KEYS[2]) == 1 then
  call('HINCRBY', KEYS[2], 'successful_job_count', successes)
  call('HINCRBY', KEYS[2], 'failed_job_count', failures)
  call('HINCRBYFLOAT', KEYS[2], 'total_working_time', string.format('%.6f', seconds))
end
return {stale, depended, malformed}
