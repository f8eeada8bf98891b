#!lua flags=allow-oom
-- Ends a node's lease, unless another node has taken its name. Other nodes recover the claims that
-- it still holds, because a queue was not a list or the server ran a call late.
-- KEYS[1]  zset   rq:farpool:nodes            node -> when its lease ends
-- KEYS[2]  hash   rq:worker:NODE              RQ's record of the node, with its `farpool_fence`
-- KEYS[3]  set    rq:worker:NODE:executions   "JOB:EXECUTION"
-- KEYS[4]  hash   rq:farpool:claims:NODE      job id -> "c|s|x EXECUTION QUEUE"
-- KEYS[5+] set    rq:workers[:QUEUE]          RQ's workers, all and those of each queue
-- ARGV[1]  node
-- ARGV[2]  the node's fence
-- ARGV[3]  time now, as RQ writes it
-- Returns 1, or 0 if another node has its name
local node, fence, now = unpack(ARGV, 1, 3)
local known = call('HGET', KEYS[2], 'farpool_fence')
if type(known) == 'string' and not same_owner(known, fence) then
  return 0
end
if redis.call('EXISTS', KEYS[4]) == 1 then
  redis.call('ZADD', KEYS[1], redis.call('TIME')[1], node)
else
  redis.call('ZREM', KEYS[1], node)
end
for k = 5, #KEYS do
  call('SREM', KEYS[k], KEYS[2])
end
call('HSET', KEYS[2], 'death', now)
call('EXPIRE', KEYS[2], 60)
redis.call('DEL', KEYS[3])
return 1
