-- Records what became of jobs, once each: only under the claim that is still the live one, and
-- only if the job was not canceled or deleted meanwhile. The first completion wins.
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
local prefix, node = ARGV[1], ARGV[2]
local epoch = tonumber(redis.call('TIME')[1])
local count = (#KEYS - 3) / 3
local WIDTH, BASE = 13, 5

local ids = {}
for i = 1, count do
  ids[i] = ARGV[BASE + (i - 1) * WIDTH + 1]
end
local live = {}
for first = 1, count, 1000 do
  local last = math.min(first + 999, count)
  for i, claim in ipairs(redis.call('HMGET', KEYS[1], unpack(ids, first, last))) do
    live[first + i - 1] = claim
  end
  redis.call('HDEL', KEYS[1], unpack(ids, first, last))
end

local reply = {0}
local kept, finished, failed, outcomes, done = {}, {}, {}, {}, {}
local failures = 0

local function append(groups, group, ...)
  local list = groups[group]
  if not list then
    list = {}
    groups[group] = list
  end
  for _, value in ipairs({...}) do
    list[#list + 1] = value
  end
end

for i = 1, count do
  local a = BASE + (i - 1) * WIDTH
  local id, execution, queue, how = ARGV[a + 1], ARGV[a + 2], ARGV[a + 3], ARGV[a + 4]
  local ttl, session = ARGV[a + 9], ARGV[a + 10]
  local job, stream, dependents = KEYS[i * 3 + 1], KEYS[i * 3 + 2], KEYS[i * 3 + 3]
  local claim = live[i]
  local rest = execution .. ' ' .. queue
  local started = claim == 's ' .. rest
  local recorded = false

  if not started and claim ~= 'c ' .. rest then
    reply[1] = reply[1] + 1
    if claim then
      -- Another execution of this node holds it: its claim stays.
      kept[#kept + 1] = id
      kept[#kept + 1] = claim
    end
  elseif how == 'chunk' then
    recorded = redis.call('DEL', job) == 1
  elseif how ~= 'recorded' then
    local status = redis.call('HGET', job, 'status')
    recorded = status and status ~= 'canceled'
    if recorded then
      local ok = how == 'ok'
      if not ok then
        failures = failures + 1
      end
      if ok and ttl == '0' and redis.call('EXISTS', dependents) == 0 then
        redis.call('DEL', job)
      else
        redis.call('HSET', job, 'status', ok and 'finished' or 'failed', 'started_at', ARGV[a + 5],
          'ended_at', ARGV[a + 6], 'worker_name', node)
        local keep = ttl ~= '' and ttl or (ok and '500' or '31536000')
        local entry = {stream, 'MAXLEN', '~', '10', '*', 'type', ok and '1' or '2',
          'worker_name', node, 'execution_id', execution, 'execution_started_at', ARGV[a + 7],
          'execution_ended_at', ARGV[a + 8]}
        if ARGV[a + 13] ~= '' then
          entry[#entry + 1] = ok and 'return_value' or 'exc_string'
          entry[#entry + 1] = ARGV[a + 13]
        end
        redis.call('XADD', unpack(entry))
        local score = keep == '-1' and (ok and '+inf' or '-1') or epoch + tonumber(keep)
        append(ok and finished or failed, queue, score, id)
        if keep ~= '-1' then
          redis.call('EXPIRE', job, keep)
          redis.call('EXPIRE', stream, keep)
        else
          redis.call('PERSIST', stream)
        end
        if redis.call('EXISTS', dependents) == 1 then
          reply[#reply + 1] = id
        end
      end
    end
  end

  if started then
    local member = id .. ':' .. execution
    redis.call('ZREM', prefix .. ':wip:' .. queue, member)
    redis.call('DEL', prefix .. ':execution:' .. member)
    redis.call('ZREM', prefix .. ':executions:' .. id, execution)
    redis.call('SREM', KEYS[3], member)
  end
  if recorded and session ~= '' then
    append(outcomes, session, id, ARGV[a + 12])
    if ARGV[a + 11] == '1' then
      append(done, session, id)
    end
  end
end

local function in_parts(command, key, list)
  for first = 1, #list, 1000 do
    redis.call(command, key, unpack(list, first, math.min(first + 999, #list)))
  end
end

in_parts('HSET', KEYS[1], kept)
for queue, members in pairs(finished) do
  in_parts('ZADD', prefix .. ':finished:' .. queue, members)
end
for queue, members in pairs(failed) do
  in_parts('ZADD', prefix .. ':failed:' .. queue, members)
end
for session, list in pairs(outcomes) do
  local key = prefix .. ':farpool:results:' .. session
  in_parts('HSET', key, list)
  redis.call('EXPIRE', key, ARGV[3])
end
for session, list in pairs(done) do
  local key = prefix .. ':farpool:done:' .. session
  redis.call('XADD', key, 'MAXLEN', '~', '10000', '*', 'ids', table.concat(list, ' '))
  redis.call('EXPIRE', key, ARGV[3])
end
if redis.call('EXISTS', KEYS[2]) == 1 then
  redis.call('HINCRBY', KEYS[2], 'successful_job_count', ARGV[4])
  redis.call('HINCRBY', KEYS[2], 'failed_job_count', failures)
  redis.call('HINCRBYFLOAT', KEYS[2], 'total_working_time', ARGV[5])
end
return reply
