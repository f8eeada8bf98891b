#!lua flags=allow-oom
-- Gives a node a lease and lists it among RQ's workers, unless a live worker has its name. It runs
-- on a full server too, because nodes empty it.
-- KEYS[1]  zset   rq:farpool:nodes      node -> when its lease ends
-- KEYS[2]  hash   rq:worker:NODE        RQ's record of the node, with its `farpool_fence`
-- KEYS[3+] set    rq:workers[:QUEUE]    RQ's workers, all and those of each queue
-- ARGV[1]  node
-- ARGV[2]  seconds of lease
-- ARGV[3]  seconds to keep the record
-- ARGV[4]  the node's fence
-- ARGV[5+] the other fields of the record: field, value, ...
-- Returns 1, or 0 if the name is taken
local node, lease, keep, fence = unpack(ARGV, 1, 4)
local now = server_time()
local birth, death, known = unpack(call('HMGET', KEYS[2], 'birth', 'death', 'farpool_fence'))
if birth and not death then
  local ends = redis.call('ZSCORE', KEYS[1], node)
  -- RQ's own worker lacks a fence: it counts as alive until its hash expires.
  if not known or not same_owner(known, fence) and ends and tonumber(ends) > now then
    return 0
  end
end
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[2], 'farpool_fence', fence, unpack(ARGV, 5))
redis.call('EXPIRE', KEYS[2], keep)
for k = 3, #KEYS do
  -- A key of the wrong type is replaced: it would keep nodes away for ever.
  if redis.call('TYPE', KEYS[k]).ok ~= 'set' then
    redis.call('DEL', KEYS[k])
  end
  redis.call('SADD', KEYS[k], KEYS[2])
end
redis.call('ZADD', KEYS[1], now + tonumber(lease), node)
return 1
