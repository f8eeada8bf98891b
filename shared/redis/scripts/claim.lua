#!lua flags=allow-oom
-- Claims up to `limit` jobs, the first queue first. It removes and claims them in one step, so that
-- a job is always in a queue or in a claim. Jobs of a newer protocol than the node's go to the tail
-- of their queue, uncharged.
-- KEYS[1]  zset   rq:farpool:nodes         node -> when its lease ends
-- KEYS[2]  hash   rq:farpool:claims:NODE   job id -> "c|s|x EXECUTION QUEUE"
-- KEYS[3]  string rq:suspended             RQ's flag
-- KEYS[4]  hash   rq:worker:NODE           RQ's record of the node, with its `farpool_fence`
-- KEYS[5+] list   rq:queue:QUEUE           ids of the jobs that wait
-- ARGV[1]  RQ's key prefix
-- ARGV[2]  node
-- ARGV[3]  limit
-- ARGV[4]  protocol of the node
-- ARGV[5]  prefix of the execution ids, which begins with the node's fence
-- ARGV[6]  "1" to return signatures, else ""
-- ARGV[7+] name of each queue
-- Returns {-1}: the node lacks a lease, or has another fence than this call, and must register
--      or {0}: workers are suspended
--      or {1, {malformed entry, ...}, {queue, newer protocol, ...}, number of ids taken, job, ...}
--   job    = {id, execution, queue, "1" if RQ's code has to run it, fields, signature or nil}
--   fields = {data, timeout, result_ttl, failure_ttl, description, tag}, and, with signatures, for
--            a job without a tag the other signed fields: three callbacks, the webhooks
local prefix, node, limit = ARGV[1], ARGV[2], tonumber(ARGV[3])
local protocol, execution_prefix, signed = tonumber(ARGV[4]), ARGV[5], ARGV[6] ~= ''
local FIRST_QUEUE, FIRST_NAME = 5, 7
local LONGEST = 512 -- also in producer/queue.py
-- Most entries of a queue that are searched for jobs behind those of a newer protocol.
local MOST_LOOKED_AT = 1000

local fence = call('HGET', KEYS[4], 'farpool_fence')
if not redis.call('ZSCORE', KEYS[1], node) or type(fence) ~= 'string'
  or string.sub(execution_prefix, 1, #fence) ~= fence then
  return {-1}
end
if redis.call('EXISTS', KEYS[3]) == 1 then
  return {0}
end

-- Returns '1' if RQ's code has to do more for a job than call its function, else ''.
local function lifecycle(key)
  local fields = redis.call('HMGET', key, 'retries_left', 'repeats_left',
    'success_callback_name', 'failure_callback_name', 'webhooks', 'rate_limit_key')
  for i = 1, 6 do
    if fields[i] and fields[i] ~= '' and fields[i] ~= '0' then
      return '1'
    end
  end
  return ''
end

-- Tells whether the caller no longer waits for a job, because its session's lease has ended.
local function abandoned(tag)
  if tag.abandoned == nil then
    tag.abandoned = tag.leased ~= nil
      and redis.call('EXISTS', prefix .. ':farpool:session:' .. tag.session) == 0
  end
  return tag.abandoned
end

local taken, malformed, newer = {}, {}, {}
local reply = {1, malformed, newer, 0}
local names = {'data', 'timeout', 'result_ttl', 'failure_ttl', 'description', 'farpool'}
local TAG, TTL, STATUS, SIGNATURE = 6, 7, 8, 9
names[TTL], names[STATUS] = 'ttl', 'status'
if signed then
  names[SIGNATURE] = 'farpool_signature'
end

for k = FIRST_QUEUE, #KEYS do
  local queue = ARGV[k - FIRST_QUEUE + FIRST_NAME]
  local claims, postponed, looked_at = {}, {}, 0
  local said = {}
  repeat
    local before = #postponed
    -- A queue of the wrong type counts as empty: the error is a table without ids.
    local ids = limit > 0 and call('LRANGE', KEYS[k], looked_at, looked_at + limit - 1) or {}
    for _, id in ipairs(ids) do
      local key = prefix .. ':job:' .. id
      local job = call('HMGET', key, unpack(names))
      local ttl, status, signature = job[TTL], job[STATUS], job[SIGNATURE]
      local tag = read_tag(job[TAG])
      -- Malformed: the key is not a hash, or RQ does not accept the id.
      local sound = not job.err and #id <= LONGEST and string.match(id, '^[%w_-]+$')
      -- Dropped: deleted, expired or canceled while it waited, already running, or queued twice.
      local wanted = sound and not taken[id] and job[1] and status ~= CANCELED
        and status ~= STARTED
      if not sound then
        malformed[#malformed + 1] = id
      elseif wanted and tag and tag.protocol > protocol then
        postponed[#postponed + 1] = id
        if not said[tag.protocol] then
          said[tag.protocol] = true
          newer[#newer + 1] = queue
          newer[#newer + 1] = tag.protocol
        end
      elseif wanted and tag and abandoned(tag) then
        redis.call('UNLINK', key)
      elseif wanted then
        if status ~= QUEUED then
          redis.call('HSET', key, 'status', QUEUED)
        end
        if ttl and ttl ~= '' then
          redis.call('PERSIST', key)
        end
        job[TTL], job[STATUS], job[SIGNATURE] = nil, nil, nil
        if signed and not tag then
          job[7], job[8], job[9], job[10] = unpack(call('HMGET', key, 'success_callback_name',
            'failure_callback_name', 'stopped_callback_name', 'webhooks'))
        end
        taken[id] = true
        local execution = execution_prefix .. #reply
        claims[#claims + 1] = id
        claims[#claims + 1] = IS_CLAIMED .. execution .. ' ' .. queue
        -- A job with a tag never needs RQ's code: RQ enqueues those that do, without a tag.
        reply[#reply + 1] = {id, execution, queue, tag and '' or lifecycle(key), job, signature}
      end
    end
    looked_at = looked_at + #ids
    limit = limit - #ids + #postponed - before
  until #postponed == before or looked_at >= MOST_LOOKED_AT
  call_with_all('HSET', KEYS[2], claims)
  call_with_all('RPUSH', KEYS[k], postponed)
  if looked_at > 0 then
    -- Last, so that an earlier failure, for lack of a right, loses no jobs.
    redis.call('LTRIM', KEYS[k], looked_at, -1)
  end
  reply[4] = reply[4] + looked_at - #postponed
end
return reply
