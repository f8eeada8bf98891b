#!lua flags=allow-oom
-- Renews a node's lease, which covers all its claims, and the RQ records of what it executes.
-- KEYS: 1 leases of the nodes, 2 RQ's hash of this worker, 3 RQ's executions of this worker
-- ARGV: 1 node, 2 seconds of lease, 3 seconds to keep the worker's hash, 4 time now as RQ writes
--       it, 5 state ("busy" or "idle"), 6 RQ's key prefix, 7 seconds until RQ may take an
--       execution for abandoned, 8 the node's fence: requests with an earlier one are refused from
--       now on, 9 "1" if a child is free, then for each started job: id, execution, queue
-- Returns: {{name of a node whose lease has ended, ...}, {id of a started job that was deleted or
--          canceled, ...}, {id of an ended job whose follow-up is overdue, ...}}, or {} if the
--          node is not registered (any more) and must do so again, or this call is late
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
local OWNER_DIGITS = 12 -- also in worker/fence.py
local fence = call('HGET', KEYS[2], 'farpool_fence')
if type(call('ZSCORE', KEYS[1], ARGV[1])) ~= 'string' or type(fence) ~= 'string'
  or string.sub(fence, 1, OWNER_DIGITS) ~= string.sub(ARGV[8], 1, OWNER_DIGITS)
  or fence > ARGV[8] then
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
for at = 10, #ARGV, 3 do
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
-- Who has a child free comes first, anybody if there is none.
local latest = ARGV[9] == '1' and epoch or epoch - 30
local due = call('ZRANGEBYSCORE', key, '-inf', latest, 'LIMIT', 0, 100)
if due.err then
  due = {}
end
for _, id in ipairs(due) do
  -- One node at a time tries.
  call('ZADD', key, epoch + 60, id)
end
return {call('ZRANGEBYSCORE', KEYS[1], '-inf', exact), gone, due}
