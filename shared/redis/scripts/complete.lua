#!lua
-- Records what became of jobs, once each: only under the claim that is still the live one, and
-- only if nobody decided otherwise meanwhile (canceled, deleted, failed by RQ's maintenance). The
-- first completion wins.
-- For at most 1,000 jobs a call.
-- KEYS: 1 claims of this node, 2 RQ's hash of this worker, 3 RQ's executions of this worker,
--       then for each job: its hash, its stream of results, its set of dependents
-- ARGV: 1 RQ's key prefix, 2 node, 3 seconds to keep a session's results, then for each job:
--       id, execution, queue, how, started, ended (as RQ writes times), started, ended (seconds
--       since the epoch), seconds to keep the result ("" default, "-1" for ever, "0" not at all;
--       a session's results are kept at least as long as ARGV[3], and not for ever),
--       session or "", "1" to announce it to the session, outcome, and what RQ's stream gets: the
--       return value or the traceback, encoded as RQ does, or "", and the signature of that or ""
--       how is "ok", "failed" or "recorded" (by RQ's code); chunks have complete_chunks.lua
-- Returns: {number of completions that were dropped because they came too late,
--          {id of an ended job that needs a follow-up: dependents, a slot of a rate limit, ...},
--          {id of a job whose keys are not RQ's records, so that it has no outcome, ...}}
-- A key of another type costs no more than what would be written there: what failed halfway would
-- lose the outcomes of others.
-- What lacks a right fails, so that somebody gives it.
local function call(...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err and string.find(reply.err, 'ACL failure', 1, true) then
    error(reply)
  end
  return reply
end
local prefix, node = ARGV[1], ARGV[2]
local epoch = tonumber(call('TIME')[1])
local count = (#KEYS - 3) / 3
local WIDTH, BASE = 14, 3
-- Whoever does the follow-up of a job needs it that long.
local DEPENDED_SECONDS = 60
-- The caller does it at once; if that is lost, some node does it this much later.
local FOLLOW_UP_SECONDS = 15

local ids, dependents = {}, {}
for i = 1, count do
  ids[i] = ARGV[BASE + (i - 1) * WIDTH + 1]
  dependents[i] = KEYS[i * 3 + 3]
end
local any_dependents = call('EXISTS', unpack(dependents)) > 0
-- Without a hash of claims the error is a table that has none.
local live = call('HMGET', KEYS[1], unpack(ids))

local stale, depended, broken = 0, {}, {}
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

-- Writes RQ's records of a job's end; false if its stream is something else.
-- Without tables of arguments, which would cost a tenth of the whole script.
local function record(i, a, ok)
  local id, queue, ttl, value = ARGV[a + 1], ARGV[a + 3], ARGV[a + 9], ARGV[a + 13]
  local job, stream = KEYS[i * 3 + 1], KEYS[i * 3 + 2]
  local has_dependents = any_dependents and call('EXISTS', dependents[i]) == 1
  if ok and ttl == '0' and not has_dependents then
    dead[#dead + 1] = job
    return true
  end
  local kind, started, ended = ok and '1' or '2', ARGV[a + 7], ARGV[a + 8]
  local added
  if value == '' then
    added = call('XADD', stream, '*', 'type', kind, 'worker_name', node, 'execution_id',
      ARGV[a + 2], 'execution_started_at', started, 'execution_ended_at', ended)
  else
    added = call('XADD', stream, '*', 'type', kind, 'worker_name', node, 'execution_id',
      ARGV[a + 2], 'execution_started_at', started, 'execution_ended_at', ended,
      ok and 'return_value' or 'exc_string', value)
  end
  if type(added) == 'table' and added.err then
    return false
  end
  local status, signature = ok and 'finished' or 'failed', ARGV[a + 14]
  if signature == '' then
    call('HSET', job, 'status', status, 'started_at', ARGV[a + 5], 'ended_at', ARGV[a + 6],
      'worker_name', node)
  else
    call('HSET', job, 'status', status, 'started_at', ARGV[a + 5], 'ended_at', ARGV[a + 6],
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
    if ARGV[a + 10] == '' then
      call('EXPIRE', prefix .. ':job::' .. id .. ':dependencies', keep)
    end
    list[#list + 1] = epoch + keep
  end
  list[#list + 1] = id
  local slot = not ok and call('HGET', job, 'rate_limit_key')
  if has_dependents or type(slot) == 'string' and slot ~= '' then
    depended[#depended + 1] = id
    call('ZADD', prefix .. ':farpool:follow_ups', epoch + FOLLOW_UP_SECONDS, id)
  end
  return true
end

for i = 1, count do
  local a = BASE + (i - 1) * WIDTH
  local id, execution, queue, how = ARGV[a + 1], ARGV[a + 2], ARGV[a + 3], ARGV[a + 4]
  local session = ARGV[a + 10]
  local job = KEYS[i * 3 + 1]
  local rest = execution .. ' ' .. queue
  local claimed = live[i] == 'c ' .. rest
  local started = not claimed and live[i] == 's ' .. rest

  if settled[id] or not claimed and not started and live[i] ~= 'x ' .. rest then
    -- Nobody's claim any more, or that of another execution, which stays.
    stale = stale + 1
  else
    local ok = how ~= 'failed'
    local recorded = false
    local status = how ~= 'recorded' and call('HGET', job, 'status')
    if status == 'queued' or status == 'started' then
      if record(i, a, ok) then
        recorded = true
        if not ok then
          call('HDEL', job, 'farpool_attempts')
        end
      else
        broken[#broken + 1] = id
      end
    elseif type(status) == 'table' then
      broken[#broken + 1] = id
    elseif how ~= 'recorded' then
      stale = stale + 1
    end

    settled[id] = true
    settled[#settled + 1] = id
    if started then
      local member = id .. ':' .. execution
      call('ZREM', prefix .. ':wip:' .. queue, member)
      call('DEL', prefix .. ':execution:' .. member)
      call('ZREM', prefix .. ':executions:' .. id, execution)
      call('SREM', KEYS[3], member)
    end
    -- What RQ's code has recorded it has counted too.
    if recorded then
      successes = successes + (ok and 1 or 0)
      failures = failures + (ok and 0 or 1)
      seconds = seconds + ARGV[a + 8] - ARGV[a + 7]
    end
    if recorded and session ~= '' then
      local list = group(outcomes, session)
      list.keep = math.max(list.keep or tonumber(ARGV[3]), tonumber(ARGV[a + 9]) or 0)
      list[#list + 1] = id
      list[#list + 1] = ARGV[a + 12]
      if ARGV[a + 11] == '1' then
        list = group(done, session)
        list[#list + 1] = id
      end
    end
  end
end

if #settled > 0 then
  call('HDEL', KEYS[1], unpack(settled))
end
if #dead > 0 then
  call('DEL', unpack(dead))
end
for queue, members in pairs(finished) do
  call('ZADD', prefix .. ':finished:' .. queue, unpack(members))
end
for queue, members in pairs(failed) do
  call('ZADD', prefix .. ':failed:' .. queue, unpack(members))
end
for session, list in pairs(outcomes) do
  local key = prefix .. ':farpool:results:' .. session
  if type(call('HSET', key, unpack(list))) == 'table' then
    for at = 1, #list, 2 do
      broken[#broken + 1] = list[at]
    end
  elseif call('TTL', key) < list.keep then
    call('EXPIRE', key, list.keep)
  end
end
for session, list in pairs(done) do
  local key = prefix .. ':farpool:done:' .. session
  call('XADD', key, 'MAXLEN', '~', '10000', '*', 'ids', table.concat(list, ' '))
  call('EXPIRE', key, ARGV[3])
end
if successes + failures > 0 and call('EXISTS', KEYS[2]) == 1 then
  call('HINCRBY', KEYS[2], 'successful_job_count', successes)
  call('HINCRBY', KEYS[2], 'failed_job_count', failures)
  call('HINCRBYFLOAT', KEYS[2], 'total_working_time', string.format('%.6f', seconds))
end
return {stale, depended, broken}
