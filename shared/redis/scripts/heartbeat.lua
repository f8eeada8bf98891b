#!lua flags=allow-oom
-- Renews a node's lease, which covers all its claims, and RQ's records of its executions.
-- KEYS[1]  zset   rq:farpool:nodes            node -> when its lease ends
-- KEYS[2]  hash   rq:worker:NODE              RQ's record of the node, with farpool's fields
-- KEYS[3]  set    rq:worker:NODE:executions   "JOB:EXECUTION"
-- ARGV[1]  RQ's key prefix
-- ARGV[2]  node
-- ARGV[3]  seconds of lease
-- ARGV[4]  seconds to keep the node's record
-- ARGV[5]  seconds after which RQ counts an execution as abandoned
-- ARGV[6]  the node's fence: calls with an earlier one are refused from now on
-- ARGV[7]  "1" if a child is free, else ""
-- ARGV[8]  count n of the strings that come next
-- ARGV[9+] n strings (field, value, ...) for the node's record,
--          then for each started job: id, execution, queue
-- Returns {{name of a node whose lease has ended, ...},
--          {id of a started job that was deleted or canceled, ...},
--          {id of an ended job whose follow-up is overdue, ...}}
--      or {}: the node is not registered and must do so (again), or this call is late
local prefix, node, lease, keep, ttl, fence, free, count = unpack(ARGV, 1, 8)
-- Seconds that nodes without a free child leave a follow-up to the others, and seconds that a node
-- has for one before the next node tries.
local FOLLOW_UP_PATIENCE, FOLLOW_UP_SECONDS = 30, 60
local now = server_time()
local epoch = math.floor(now)
local known = call('HGET', KEYS[2], 'farpool_fence')
if not redis.call('ZSCORE', KEYS[1], node) or type(known) ~= 'string'
  or not same_owner(known, fence) or known > fence then
  return {}
end
redis.call('ZADD', KEYS[1], now + tonumber(lease), node)
redis.call('HSET', KEYS[2], 'farpool_fence', fence, unpack(ARGV, 9, 8 + count))
redis.call('EXPIRE', KEYS[2], keep)
redis.call('EXPIRE', KEYS[3], keep)
local gone = {}
for a = 9 + count, #ARGV, 3 do
  local id, execution, queue = unpack(ARGV, a, a + 2)
  local status = call('HGET', prefix .. ':job:' .. id, 'status')
  if type(status) ~= 'string' or status == CANCELED then
    gone[#gone + 1] = id
  end
  if call('EXISTS', prefix .. ':execution:' .. id .. ':' .. execution) == 1 then
    keep_execution(prefix, id, execution, queue, epoch, tonumber(ttl), 'XX')
  end
end
local key = prefix .. ':farpool:follow_ups'
-- Nodes with a free child come first.
local latest = free == '1' and epoch or epoch - FOLLOW_UP_PATIENCE
local due = redis.call('ZRANGEBYSCORE', key, '-inf', latest, 'LIMIT', 0, 100)
for _, id in ipairs(due) do
  -- One node at a time tries.
  redis.call('ZADD', key, epoch + FOLLOW_UP_SECONDS, id)
end
return {redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now), gone, due}
