#!lua flags=allow-oom
-- Makes a node known to RQ as a worker, with a lease, unless a live worker has its name. A full
-- server has to take it too: nodes are what empties it.
-- KEYS: 1 leases of the nodes, 2 RQ's hash of this worker, 3.. RQ's sets of workers
-- ARGV: 1 node, 2 seconds of lease, 3 seconds to keep the hash, 4 the node's fence,
--       then the fields of the hash, each with its value
-- Returns: 1; or 0 if the name is taken
-- A key of another type is replaced: it would keep nodes away for ever.
local OWNER_DIGITS = 12 -- also in worker/fence.py
for i, kind in ipairs({'zset', 'hash'}) do
  local found = redis.call('TYPE', KEYS[i]).ok
  if found ~= kind and found ~= 'none' then
    redis.call('DEL', KEYS[i])
  end
end
local now = redis.call('TIME')
local exact = tonumber(now[1]) + tonumber(now[2]) / 1e6
local birth, death, fence = unpack(
  redis.call('HMGET', KEYS[2], 'birth', 'death', 'farpool_fence'))
if birth and not death then
  local lease = redis.call('ZSCORE', KEYS[1], ARGV[1])
  local own = fence and string.sub(fence, 1, OWNER_DIGITS) == string.sub(ARGV[4], 1, OWNER_DIGITS)
  -- Of a stock worker nobody can tell before its hash expires.
  if not own and (not fence or lease and tonumber(lease) > exact) then
    return 0
  end
end
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[2], 'farpool_fence', ARGV[4], unpack(ARGV, 5))
redis.call('EXPIRE', KEYS[2], ARGV[3])
for i = 3, #KEYS do
  if redis.call('TYPE', KEYS[i]).ok ~= 'set' then
    redis.call('DEL', KEYS[i])
  end
  redis.call('SADD', KEYS[i], KEYS[2])
end
redis.call('ZADD', KEYS[1], exact + tonumber(ARGV[2]), ARGV[1])
return 1
