#!lua
-- Adds jobs to a queue as RQ's enqueue does, many in one step.
-- A call that is sent again, because its answer was lost, adds nothing: it left a mark. What may
-- have been sent in another call, or long ago, is looked for job by job.
-- KEYS: 1 set of queues, 2 queue, 3 mark of this call, 4 hash of the session, 5 its results,
--       6.. the job hash of each job
-- ARGV: 1 "front" or "back", 2 seconds until an unstarted job expires or "",
--       3 seconds to keep the mark, "" to look for each job instead,
--       4 "1" if the session needs a lease, else "",
--       5 jobs that there is room for in the queue, or "", 6 jobs that are to find room with these,
--       7 "1" if the jobs are signed, else "",
--       8 count n of shared strings, then n strings (field, value, ...) for every job,
--       then for each job: id, data, description, and its signature if they are signed
-- Returns: number of jobs added; -1 if the lease of the session has ended; {jobs that wait} if
--          there is no room
local push = ARGV[1] == 'front' and 'LPUSH' or 'RPUSH'
local ttl = ARGV[2]
local again = ARGV[3] == ''
local limit = tonumber(ARGV[5])
local signed = ARGV[7] ~= ''
local shared = tonumber(ARGV[8])
if ARGV[4] ~= '' and redis.call('EXISTS', KEYS[4]) == 0 then
  return -1
end
-- Where one of these is something else, it fails here and has not left a mark yet.
redis.call('LLEN', KEYS[2])
redis.call('SADD', KEYS[1], KEYS[2])
if not again and not redis.call('SET', KEYS[3], '', 'NX', 'EX', ARGV[3]) then
  return 0
end
local length = limit and redis.call('LLEN', KEYS[2])
if limit and length + tonumber(ARGV[6]) > limit then
  redis.call('DEL', KEYS[3])
  return {length}
end
local fields = {}
for i = 1, shared do
  fields[i] = ARGV[8 + i]
end
fields[shared + 1] = 'data'
fields[shared + 3] = 'description'
if signed then
  fields[shared + 5] = 'farpool_signature'
end

local at = 9 + shared
local width = signed and 4 or 3
local ids = {}
for k = 6, #KEYS do
  local id = ARGV[at]
  local known = again
    and (redis.call('EXISTS', KEYS[k]) == 1 or redis.pcall('HEXISTS', KEYS[5], id) == 1)
  if not known then
    fields[shared + 2] = ARGV[at + 1]
    fields[shared + 4] = ARGV[at + 2]
    if signed then
      fields[shared + 6] = ARGV[at + 3]
    end
    redis.call('HSET', KEYS[k], unpack(fields))
    if ttl ~= '' then
      redis.call('EXPIRE', KEYS[k], ttl)
    end
    ids[#ids + 1] = id
  end
  at = at + width
end
for first = 1, #ids, 1000 do
  redis.call(push, KEYS[2], unpack(ids, first, math.min(first + 999, #ids)))
end
return #ids
