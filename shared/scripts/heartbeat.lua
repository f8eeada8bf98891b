#!lua flags=allow-oom
-- Renews a node's lease, which covers all its claims, and the RQ records of what it executes.
-- KEYS: 1 leases of the nodes, 2 RQ's hash of this worker, 3 RQ's executions of this worker
-- ARGV: 1 node, 2 seconds of lease, 3 seconds to keep the worker's hash, 4 time now as RQ writes
--       it, 5 state ("busy" or "idle"), 6 RQ's key prefix, 7 seconds until RQ may take an
--       execution for abandoned, 8 the node's fence: what it sends is to be refused when that has
--       changed meanwhile; then for each started job: id, execution, queue
-- Returns: {{name of a node whose lease has ended, ...}, {id of a started job that was deleted or
--          canceled, ...}, {id of an ended job whose follow-up is overdue, ...}}, or {} if the node is not registered (any more) and must register again
-- A key of another type costs no more than what would be written there.
-- What lacks a right fails, so that somebody gives it.
local function call(...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err and string.find(reply.err, 'ACL failure', 1, true) then
    error(reply)
  end
  return reply
end
local now = redis.call('TIME')
local epoch = tonumber(now[1])
if type(call('ZSCORE', KEYS[1], ARGV[1])) ~= 'string'
  or redis.call('TYPE', KEYS[2]).ok ~= 'hash' then
  return {}
end
local exact = epoch + tonumber(now[2]) / 1e6
redis.call('ZADD', KEYS[1], exact + tonumber(ARGV[2]), ARGV[1])
redis.call('HSET', KEYS[2], 'last_heartbeat', ARGV[4], 'state', ARGV[5],
  'farpool_fence', ARGV[8])
redis.call('EXPIRE', KEYS[2], ARGV[3])
redis.call('EXPIRE', KEYS[3], ARGV[3])
local prefix, ttl = ARGV[6], tonumber(ARGV[7])
local gone = {}
for at = 9, #ARGV, 3 do
  local id, execution, queue = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local status = call('HGET', prefix .. ':job:' .. id, 'status')
  if type(status) ~= 'string' or status == 'canceled' then
    gone[#gone + 1] = id
  end
  local key = prefix .. ':execution:' .. id .. ':' .. execution
  if call('EXISTS', key) == 1 then
    call('HSET', key, 'last_heartbeat', epoch)
    call('EXPIRE', key, ttl)
    call('ZADD', prefix .. ':wip:' .. queue, 'XX', epoch + ttl, id .. ':' .. execution)
    call('ZADD', prefix .. ':executions:' .. id, 'XX', epoch + ttl + 60, execution)
    call('EXPIRE', prefix .. ':executions:' .. id, ttl + 60)
  end
end
local key = prefix .. ':farpool:follow_ups'
local due = call('ZRANGEBYSCORE', key, '-inf', epoch, 'LIMIT', 0, 100)
if due.err then
  due = {}
end
for _, id in ipairs(due) do
  -- One node at a time tries.
  call('ZADD', key, epoch + 60, id)
end
return {call('ZRANGEBYSCORE', KEYS[1], '-inf', exact), gone, due}
