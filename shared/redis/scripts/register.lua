#!lua flags=allow-oom
-- Makes a node known to RQ as a worker, with a lease, unless a live worker has its name. A full
-- server has to take it too: nodes are what empties it.
-- KEYS[1]  zset   rq:farpool:nodes      node -> when its lease ends
-- KEYS[2]  hash   rq:worker:NODE        RQ's record of the node, with our `farpool_fence`
-- KEYS[3+] set    rq:workers[:QUEUE]    RQ's workers, in all and of each queue
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
  -- Of a stock worker nobody can tell before its hash expires.
  if not known or not same_owner(known, fence) and ends and tonumber(ends) > now then
    return 0
  end
end
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[2], 'farpool_fence', fence, unpack(ARGV, 5))
redis.call('EXPIRE', KEYS[2], keep)
for k = 3, #KEYS do
  -- A key of another type is replaced: it would keep nodes away for ever.
  if redis.call('TYPE', KEYS[k]).ok ~= 'set' then
    redis.call('DEL', KEYS[k])
  end
  redis.call('SADD', KEYS[k], KEYS[2])
end
redis.call('ZADD', KEYS[1], now + tonumber(lease), node)
return 1
