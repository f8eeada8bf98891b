#!lua
-- Adds jobs to a queue as RQ's enqueue does, many in one step.
-- Ids are never used twice, so a call that is sent again adds nothing.
-- KEYS: 1 set of queues, 2 queue, 3.. the job hash of each job
-- ARGV: 1 "front" or "back", 2 seconds until an unstarted job expires or "",
--       3 count n of shared strings, then n strings (field, value, ...) for every job,
--       then for each job: id, data, description
-- Returns: number of jobs added
local push = ARGV[1] == 'front' and 'LPUSH' or 'RPUSH'
local ttl = ARGV[2]
local shared = tonumber(ARGV[3])
local fields = {}
for i = 1, shared do
  fields[i] = ARGV[3 + i]
end
fields[shared + 1] = 'data'
fields[shared + 3] = 'description'

redis.call('SADD', KEYS[1], KEYS[2])
local at = 4 + shared
local ids = {}
for k = 3, #KEYS do
  fields[shared + 2] = ARGV[at + 1]
  fields[shared + 4] = ARGV[at + 2]
  if redis.call('HSET', KEYS[k], unpack(fields)) > 0 then
    ids[#ids + 1] = ARGV[at]
    if ttl ~= '' then
      redis.call('EXPIRE', KEYS[k], ttl)
    end
  end
  at = at + 3
end
if #ids > 0 then
  redis.call(push, KEYS[2], unpack(ids))
end
return #ids
