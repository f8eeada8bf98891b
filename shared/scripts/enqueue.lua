#!lua
-- Adds jobs to a queue as RQ's enqueue does, many in one step.
-- A call that is sent again, because its answer was lost, adds nothing.
-- KEYS: 1 set of queues, 2 queue, 3 mark of this call, 4.. the job hash of each job
-- ARGV: 1 "front" or "back", 2 seconds until an unstarted job expires or "",
--       3 seconds to keep the mark, 4 count n of shared strings, then n strings
--       (field, value, ...) for every job, then for each job: id, data, description
-- Returns: number of jobs added
local push = ARGV[1] == 'front' and 'LPUSH' or 'RPUSH'
local ttl = ARGV[2]
local shared = tonumber(ARGV[4])
if not redis.call('SET', KEYS[3], '', 'NX', 'EX', ARGV[3]) then
  return 0
end
local fields = {}
for i = 1, shared do
  fields[i] = ARGV[4 + i]
end
fields[shared + 1] = 'data'
fields[shared + 3] = 'description'

redis.call('SADD', KEYS[1], KEYS[2])
local at = 5 + shared
local ids = {}
for k = 4, #KEYS do
  fields[shared + 2] = ARGV[at + 1]
  fields[shared + 4] = ARGV[at + 2]
  redis.call('HSET', KEYS[k], unpack(fields))
  if ttl ~= '' then
    redis.call('EXPIRE', KEYS[k], ttl)
  end
  ids[#ids + 1] = ARGV[at]
  at = at + 3
end
redis.call(push, KEYS[2], unpack(ids))
return #ids
