#!lua flags=allow-oom
-- Takes a node's leave, unless another node has its name by now. What it still holds, because no
-- queue took it or the server came to it late, is for others to take over.
-- KEYS: 1 leases of the nodes, 2 RQ's hash of this worker, 3 its executions, 4 claims of this node,
--       5.. RQ's sets of workers
-- ARGV: 1 node, 2 the node's fence, 3 time now as RQ writes it
-- A key of another type costs no more than what would be written there.
-- What lacks a right fails, so that somebody gives it.
local function call(...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err and string.find(reply.err, 'ACL failure', 1, true) then
    error(reply)
  end
  return reply
end
local OWNER_DIGITS = 12 -- also in worker/fence.py
local fence = call('HGET', KEYS[2], 'farpool_fence')
if type(fence) == 'string'
  and string.sub(fence, 1, OWNER_DIGITS) ~= string.sub(ARGV[2], 1, OWNER_DIGITS) then
  return 0
end
local held = false
-- Without a hash of claims the error is a table that has none.
local claims = call('HGETALL', KEYS[4])
for i = 2, #claims, 2 do
  held = held or string.match(claims[i], '^[csx] [%w_-]+ .+$')
end
if held then
  call('ZADD', KEYS[1], call('TIME')[1], ARGV[1])
else
  call('ZREM', KEYS[1], ARGV[1])
  call('DEL', KEYS[4])
end
for i = 5, #KEYS do
  call('SREM', KEYS[i], KEYS[2])
end
call('HSET', KEYS[2], 'death', ARGV[3])
call('EXPIRE', KEYS[2], 60)
call('DEL', KEYS[3])
return 1
