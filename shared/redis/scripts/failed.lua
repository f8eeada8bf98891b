#!lua
-- Takes failed jobs out of RQ's registry, each in one step: back into its queue, or away with all
-- that it left. Whoever comes second finds that the job is not failed any more.
-- KEYS: 1 set of queues
-- ARGV: 1 "requeue" or "delete", 2 RQ's key prefix, 3 time now as RQ writes it,
--       4 the queue in whose registry the jobs stand, "" for each job's own, then the ids
-- Returns: {refused, limits}: refused = {id, status, ...} of jobs that are not failed, with "" for
--          those that are gone; limits = {key, ...} of rate limits that requeued jobs wait for
local call = redis.call
local how, prefix, now, registry = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local epoch = call('TIME')[1]
local refused, limits = {}, {}

local function requeue(id, job, queue, ttl, key, concurrency)
  call('HDEL', job, 'farpool_attempts', 'started_at', 'ended_at', 'worker_name', 'last_heartbeat')
  if tonumber(ttl or '') then
    call('EXPIRE', job, ttl)
  else
    -- It would expire as the failure that it was.
    call('PERSIST', job)
  end
  call('PERSIST', job .. ':dependents')
  if key and key ~= '' then
    -- As RQ enqueues such jobs; whoever lets them into their queue is RQ's own script.
    call('HSET', job, 'status', 'rate_limited')
    call('SADD', prefix .. ':rl-keys', key)
    call('HSET', prefix .. ':rl:' .. key, 'concurrency', concurrency)
    call('ZADD', prefix .. ':rl:' .. key .. ':rate_limited', epoch, id)
    limits[#limits + 1] = key
  else
    call('HSET', job, 'status', 'queued', 'enqueued_at', now)
    call('SADD', KEYS[1], prefix .. ':queue:' .. queue)
    call('RPUSH', prefix .. ':queue:' .. queue, id)
  end
end

local function delete(id, job, group)
  call('UNLINK', job, job .. ':dependents', prefix .. ':job::' .. id .. ':dependencies',
    prefix .. ':results:' .. id, prefix .. ':executions:' .. id)
  if group and group ~= '' then
    call('SREM', prefix .. ':group:' .. group, id)
  end
end

for i = 5, #ARGV do
  local id = ARGV[i]
  local job = prefix .. ':job:' .. id
  local fields = redis.pcall('HMGET', job, 'status', 'origin', 'farpool', 'ttl', 'rate_limit_key',
    'rate_limit_concurrency', 'group_id')
  local status, queue = fields[1], fields[2]
  -- RQ's registry of failed jobs has those that were stopped, too.
  local failed = (status == 'failed' or status == 'stopped') and queue
  if failed and call('ZREM', prefix .. ':failed:' .. queue, id) == 1 then
    local session = string.match(fields[3] or '', '^(%x+) ')
    if session then
      -- Who has not fetched it yet gets the next one.
      call('HDEL', prefix .. ':farpool:results:' .. session, id)
    end
    if how == 'requeue' then
      requeue(id, job, queue, fields[4], fields[5], fields[6])
    else
      delete(id, job, fields[7])
    end
  else
    refused[#refused + 1] = id
    refused[#refused + 1] = status or ''
    if not status and registry ~= '' then
      call('ZREM', prefix .. ':failed:' .. registry, id)
    end
  end
end
return {refused, limits}
