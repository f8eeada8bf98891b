#!lua flags=allow-oom
-- Takes up to `limit` jobs from queues, the first queue first, and records who holds them in the
-- same step, so that a job is always in a queue or in a claim.
-- KEYS: 1 leases of the nodes, 2 claims of this node, 3 RQ's suspension flag,
--       4 RQ's hash of this worker, 5.. queues
-- ARGV: 1 node, 2 limit, 3 prefix of RQ's job hashes, 4 prefix for execution ids, which begins
--       with the node's fence,
--       5 prefix of the hashes of sessions, 6 "1" to return signatures, else "",
--       then the name of each queue
-- Returns: {-1} the node has no lease and must register first, or another fence than this call;
--          {0} workers are suspended;
--          {1, {id of what waited and is no job, ...}, number of ids taken, job, ...} with each job = {id, execution,
--          queue, lifecycle, fields, signature or nil} and fields = {data, timeout, result_ttl,
--          failure_ttl, description, tag}, to which the rest that is signed is added if the
--          signature is asked for and there is no tag: three callbacks and the webhooks
-- A claim is the field `id` of the claims hash, "c EXECUTION QUEUE", or "s ..." once started, or
-- "x ..." once it has had all its attempts and is to be failed.
-- A key of another type fails nothing: after a pop, that would lose jobs.
-- What lacks a right does, so that somebody gives it.
local function call(...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err and string.find(reply.err, 'ACL failure', 1, true) then
    error(reply)
  end
  return reply
end
if type(call('ZSCORE', KEYS[1], ARGV[1])) ~= 'string' then
  return {-1}
end
local fence = call('HGET', KEYS[4], 'farpool_fence')
if type(fence) ~= 'string' or string.sub(ARGV[4], 1, #fence) ~= fence then
  return {-1}
end
if redis.call('TYPE', KEYS[2]).ok ~= 'hash' then
  -- What is there in place of claims would let none be recorded.
  redis.call('DEL', KEYS[2])
end
if redis.call('EXISTS', KEYS[3]) == 1 then
  return {0}
end
local limit = tonumber(ARGV[2])
local refused = {}
local reply = {1, refused, 0}

-- Whether RQ's own code has more to do around the job than to call it.
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

-- Whether a job's producer wants it dropped, because there was no sign of life of it for too long.
local known = {}
local function abandoned(tag)
  if known[tag] == nil then
    local session = string.match(tag, '^([0-9a-f]+) [dcom]*l[dcolm]* %d+ %d+%.?%d*$')
    known[tag] = session and redis.call('EXISTS', ARGV[5] .. session) == 0 or false
  end
  return known[tag]
end

local taken = {}
local signed = ARGV[6] ~= ''
local names = {'data', 'timeout', 'result_ttl', 'failure_ttl', 'description', 'farpool'}
local TTL, STATUS, SIGNATURE = 7, 8, 9
local LONGEST = 512 -- also in producer/queue.py
names[TTL], names[STATUS] = 'ttl', 'status'
if signed then
  names[SIGNATURE] = 'farpool_signature'
end

for k = 5, #KEYS do
  local queue = ARGV[k + 2]
  -- A queue that is no list has no jobs: the error is a table without any.
  local ids = limit > 0 and call('LRANGE', KEYS[k], 0, limit - 1) or {}
  local claims = {}
  for _, id in ipairs(ids) do
    local key = ARGV[3] .. id
    local job = call('HMGET', key, unpack(names))
    local ttl, status, signature = job[TTL], job[STATUS], job[SIGNATURE]
    -- A job that was deleted, expired or canceled while it waited is dropped, and so are one that
    -- is running already or waited twice, and what is no job: its key is no hash, or its id is none
    -- that RQ takes.
    local sound = not job.err and #id <= LONGEST and string.match(id, '^[%w_-]+$')
    local wanted = sound and not taken[id] and job[1] and status ~= 'canceled'
      and status ~= 'started'
    if not sound then
      refused[#refused + 1] = id
    elseif wanted and job[6] and abandoned(job[6]) then
      redis.call('UNLINK', key)
    elseif wanted then
      if status ~= 'queued' then
        redis.call('HSET', key, 'status', 'queued')
      end
      if ttl and ttl ~= '' then
        redis.call('PERSIST', key)
      end
      job[TTL], job[STATUS], job[SIGNATURE] = nil, nil, nil
      if signed and (not job[6] or job[6] == '') then
        job[7], job[8], job[9], job[10] = unpack(call('HMGET', key, 'success_callback_name',
          'failure_callback_name', 'stopped_callback_name', 'webhooks'))
      end
      taken[id] = true
      local execution = ARGV[4] .. #reply
      claims[#claims + 1] = id
      claims[#claims + 1] = 'c ' .. execution .. ' ' .. queue
      -- Producers of ours leave jobs that need more to RQ's, which do not set the tag.
      reply[#reply + 1] = {id, execution, queue, job[6] and job[6] ~= '' and '' or lifecycle(key), job, signature}
    end
  end
  for first = 1, #claims, 1000 do
    redis.call('HSET', KEYS[2], unpack(claims, first, math.min(first + 999, #claims)))
  end
  if #ids > 0 then
    -- Last, so that what fails before, for the lack of a right, loses nothing.
    redis.call('LTRIM', KEYS[k], #ids, -1)
  end
  reply[3] = reply[3] + #ids
  limit = limit - #ids
end
return reply
