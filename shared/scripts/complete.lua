#!lua
-- Records what became of jobs, once each: only under the claim that is still the live one, and
-- only if the job was not canceled or deleted meanwhile. The first completion wins.
-- For at most 1,000 jobs a call.
-- KEYS: 1 claims of this node, 2 RQ's hash of this worker, 3 RQ's executions of this worker,
--       then for each job: its hash, its stream of results, its set of dependents
-- ARGV: 1 RQ's key prefix, 2 node, 3 seconds to keep a session's results, 4 jobs that succeeded,
--       5 seconds that jobs ran in all, then for each job:
--       id, execution, queue, how, started, ended (as RQ writes times), started, ended (seconds
--       since the epoch), seconds to keep the result ("" default, "-1" for ever, "0" not at all),
--       session or "", "1" to announce it to the session, outcome, and what RQ's stream gets: the
--       return value or the traceback, encoded as RQ does, or ""
--       how is "ok", "failed", "chunk" (part of a map: no RQ records) or "recorded" (by RQ's code)
-- Returns: {number of stale completions that were dropped, id of a job with dependents, ...}
local call = redis.call
local prefix, node = ARGV[1], ARGV[2]
local epoch = tonumber(call('TIME')[1])
local count = (#KEYS - 3) / 3
local WIDTH, BASE = 13, 5

local ids = {}
for i = 1, count do
  ids[i] = ARGV[BASE + (i - 1) * WIDTH + 1]
end
local dependents = {}
for i = 1, count do
  dependents[i] = KEYS[i * 3 + 3]
end
local any_dependents = call('EXISTS', unpack(dependents)) > 0
local live = call('HMGET', KEYS[1], unpack(ids))

local reply = {0}
local settled, finished, failed, outcomes, done = {}, {}, {}, {}, {}
local failures = 0

local function group(groups, name)
  local list = groups[name]
  if not list then
    list = {}
    groups[name] = list
  end
  return list
end

for i = 1, count do
  local a = BASE + (i - 1) * WIDTH
  local id, execution, queue, how = ARGV[a + 1], ARGV[a + 2], ARGV[a + 3], ARGV[a + 4]
  local ttl, session = ARGV[a + 9], ARGV[a + 10]
  local job, stream = KEYS[i * 3 + 1], KEYS[i * 3 + 2]
  local claim = live[i]
  local rest = execution .. ' ' .. queue
  local started = claim == 's ' .. rest
  local recorded = false

  if not started and claim ~= 'c ' .. rest or settled[id] then
    -- Nobody's claim any more, or that of another execution, which stays.
    reply[1] = reply[1] + 1
    started = false
  elseif how == 'chunk' then
    recorded = call('DEL', job) == 1
  elseif how ~= 'recorded' then
    local status = call('HGET', job, 'status')
    recorded = status and status ~= 'canceled'
    if recorded then
      local ok = how == 'ok'
      local depended = any_dependents and call('EXISTS', dependents[i]) == 1
      if not ok then
        failures = failures + 1
        call('HDEL', job, 'farpool_attempts')
      end
      if ok and ttl == '0' and not depended then
        call('DEL', job)
      else
        call('HSET', job, 'status', ok and 'finished' or 'failed', 'started_at', ARGV[a + 5],
          'ended_at', ARGV[a + 6], 'worker_name', node)
        if ARGV[a + 13] == '' then
          call('XADD', stream, '*', 'type', ok and '1' or '2', 'worker_name', node,
            'execution_id', execution, 'execution_started_at', ARGV[a + 7],
            'execution_ended_at', ARGV[a + 8])
        else
          call('XADD', stream, '*', 'type', ok and '1' or '2',
            'worker_name', node, 'execution_id', execution, 'execution_started_at', ARGV[a + 7],
            'execution_ended_at', ARGV[a + 8], ok and 'return_value' or 'exc_string',
            ARGV[a + 13])
        end
        local keep = ttl ~= '' and ttl or (ok and '500' or '31536000')
        local list = group(ok and finished or failed, queue)
        if keep == '-1' then
          call('PERSIST', stream)
          list[#list + 1] = ok and '+inf' or '-1'
        else
          call('EXPIRE', job, keep)
          call('EXPIRE', stream, keep)
          if session == '' then
            call('EXPIRE', prefix .. ':job::' .. id .. ':dependencies', keep)
          end
          if depended then
            call('EXPIRE', dependents[i], keep)
          end
          list[#list + 1] = epoch + keep
        end
        list[#list + 1] = id
        if depended then
          reply[#reply + 1] = id
        end
      end
    end
  end

  if started or claim == 'c ' .. rest then
    settled[id] = true
    settled[#settled + 1] = id
  end
  if started then
    local member = id .. ':' .. execution
    call('ZREM', prefix .. ':wip:' .. queue, member)
    call('DEL', prefix .. ':execution:' .. member)
    call('ZREM', prefix .. ':executions:' .. id, execution)
    call('SREM', KEYS[3], member)
  end
  if recorded and session ~= '' then
    local list = group(outcomes, session)
    list[#list + 1] = id
    list[#list + 1] = ARGV[a + 12]
    if ARGV[a + 11] == '1' then
      list = group(done, session)
      list[#list + 1] = id
    end
  end
end

-- Last, so that a call that fails on the way can be sent again.
if #settled > 0 then
  call('HDEL', KEYS[1], unpack(settled))
end
for queue, members in pairs(finished) do
  call('ZADD', prefix .. ':finished:' .. queue, unpack(members))
end
for queue, members in pairs(failed) do
  call('ZADD', prefix .. ':failed:' .. queue, unpack(members))
end
for session, list in pairs(outcomes) do
  local key = prefix .. ':farpool:results:' .. session
  call('HSET', key, unpack(list))
  call('EXPIRE', key, ARGV[3])
end
for session, list in pairs(done) do
  local key = prefix .. ':farpool:done:' .. session
  call('XADD', key, 'MAXLEN', '~', '10000', '*', 'ids', table.concat(list, ' '))
  call('EXPIRE', key, ARGV[3])
end
if call('EXISTS', KEYS[2]) == 1 then
  call('HINCRBY', KEYS[2], 'successful_job_count', ARGV[4])
  call('HINCRBY', KEYS[2], 'failed_job_count', failures)
  call('HINCRBYFLOAT', KEYS[2], 'total_working_time', ARGV[5])
end
return reply
