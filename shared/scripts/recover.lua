#!lua flags=allow-oom
-- Takes over what a node held whose lease has ended: what it had not started goes back to the
-- head of its queue uncharged, what it had started is charged one attempt. A job that may run at
-- most once counts as started, because short ones are never announced.
-- KEYS: 1 leases of the nodes, 2 claims of the lost node, 3 claims of the calling node,
--       4 RQ's executions of the lost node
-- ARGV: 1 RQ's key prefix, 2 the lost node, 3 attempts of a job whose producer said nothing of it
-- Returns: {0} the lease has not ended after all; {1, jobs given back, exhausted, ...} with each
--          exhausted job = {id, execution, queue, tag}, now claimed by the caller, to be failed
local prefix, lost = ARGV[1], ARGV[2]
local lease = redis.call('ZSCORE', KEYS[1], lost)
local now = redis.call('TIME')
if lease and tonumber(lease) > tonumber(now[1]) + tonumber(now[2]) / 1e6 then
  return {0}
end
local reply = {1, 0}
local flat = redis.call('HGETALL', KEYS[2])
for i = 1, #flat, 2 do
  local id = flat[i]
  local state, execution, queue = string.match(flat[i + 1], '^(%a) (%S+) (.*)$')
  local job = prefix .. ':job:' .. id
  -- What is no claim, or no job, holds up nothing else.
  local status = queue and redis.pcall('HGET', job, 'status')
  if state == 's' then
    local member = id .. ':' .. execution
    redis.call('ZREM', prefix .. ':wip:' .. queue, member)
    redis.call('DEL', prefix .. ':execution:' .. member)
    redis.call('ZREM', prefix .. ':executions:' .. id, execution)
  end
  -- A status of its own means that RQ's maintenance or a user decided meanwhile.
  if status == 'queued' or status == 'started' then
    local tag = redis.call('HGET', job, 'farpool') or ''
    local allowed = tonumber(string.match(tag, '^%x* %a* (%d+)') or 0)
    if allowed == 0 then
      allowed = tonumber(ARGV[3])
    end
    local attempts = 0
    if state == 's' or string.match(tag, '^%x* %a*m') then
      attempts = redis.pcall('HINCRBY', job, 'farpool_attempts', 1)
      -- What is no number has been meddled with.
      attempts = type(attempts) == 'table' and allowed or attempts
    end
    if attempts >= allowed then
      -- Still started: if the caller is lost too, it is not tried again.
      redis.call('HSET', KEYS[3], id, 's ' .. execution .. ' ' .. queue)
      reply[#reply + 1] = {id, execution, queue, tag}
    else
      redis.call('HSET', job, 'status', 'queued')
      redis.call('LPUSH', prefix .. ':queue:' .. queue, id)
      reply[2] = reply[2] + 1
    end
  end
end
redis.call('ZREM', KEYS[1], lost)
-- Its entry among RQ's workers; a node that comes back registers anew.
local worker = prefix .. ':worker:' .. lost
for queue in string.gmatch(redis.call('HGET', worker, 'queues') or '', '[^,]+') do
  redis.call('SREM', prefix .. ':workers:' .. queue, worker)
end
redis.call('SREM', prefix .. ':workers', worker)
redis.call('DEL', KEYS[2], KEYS[4], worker)
return reply
