#!lua flags=allow-oom
-- Records the outcomes of chunks of one session, once each, as complete.lua does for other jobs;
-- they leave nothing else, so that this takes a third of the time.
-- For at most 1,000 chunks a call.
-- KEYS: 1 claims of this node, 2 RQ's hash of this worker, 3 RQ's executions of this worker,
--       4 results of the session, 5 its stream of what is done, then the job hash of each chunk
-- ARGV: 1 RQ's key prefix, 2 queue, 3 seconds to keep the results, 4 seconds to keep the stream,
--       5 "1" to announce the chunks there, 6 seconds that they ran in all,
--       then for each chunk: id, execution, outcome
-- Returns: {number of completions that were dropped because they came too late, {},
--          {id of a chunk whose key is not a job, so that it has no outcome, ...}}
-- As there, a key of another type costs no more than what would be written there.
-- What lacks a right fails, so that somebody gives it.
local function call(...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err and string.find(reply.err, 'ACL failure', 1, true) then
    error(reply)
  end
  return reply
end
local prefix, queue = ARGV[1], ARGV[2]
local WIDTH, FIRST = 3, 7

local ids = {}
for a = FIRST, #ARGV, WIDTH do
  ids[#ids + 1] = ARGV[a]
end
local live = call('HMGET', KEYS[1], unpack(ids))

local stale, broken = 0, {}
local seen, settled, dead, outcomes, done = {}, {}, {}, {}, {}
for i, id in ipairs(ids) do
  local a = FIRST + (i - 1) * WIDTH
  local execution = ARGV[a + 1]
  local rest = execution .. ' ' .. queue
  local started = live[i] == 's ' .. rest
  if seen[id] or not started and live[i] ~= 'c ' .. rest and live[i] ~= 'x ' .. rest then
    -- Nobody's claim any more, or that of another execution, which stays.
    stale = stale + 1
  else
    seen[id] = true
    settled[#settled + 1] = id
    local status = call('HGET', KEYS[i + 5], 'status')
    if status == 'queued' or status == 'started' then
      dead[#dead + 1] = KEYS[i + 5]
      outcomes[#outcomes + 1] = id
      outcomes[#outcomes + 1] = ARGV[a + 2]
      done[#done + 1] = id
    elseif type(status) == 'table' then
      broken[#broken + 1] = id
    else
      stale = stale + 1
    end
    if started then
      local member = id .. ':' .. execution
      call('ZREM', prefix .. ':wip:' .. queue, member)
      call('DEL', prefix .. ':execution:' .. member)
      call('ZREM', prefix .. ':executions:' .. id, execution)
      call('SREM', KEYS[3], member)
    end
  end
end

if #settled > 0 then
  call('HDEL', KEYS[1], unpack(settled))
end
if #done > 0 then
  call('DEL', unpack(dead))
  if type(call('HSET', KEYS[4], unpack(outcomes))) == 'table' then
    broken = done
  elseif call('TTL', KEYS[4]) < tonumber(ARGV[3]) then
    call('EXPIRE', KEYS[4], ARGV[3])
  end
  if ARGV[5] == '1' then
    call('XADD', KEYS[5], 'MAXLEN', '~', '10000', '*', 'ids', table.concat(done, ' '))
    call('EXPIRE', KEYS[5], ARGV[4])
  end
  if call('EXISTS', KEYS[2]) == 1 then
    call('HINCRBY', KEYS[2], 'successful_job_count', #done)
    call('HINCRBYFLOAT', KEYS[2], 'total_working_time', ARGV[6])
  end
end
return {stale, {}, broken}
