#!lua
-- Takes failed jobs out of RQ's registry, each in one step: requeues them, or deletes them with all
-- their records. A second call finds that the job is no longer failed.
-- KEYS[1]  set    rq:queues   keys of the queues
-- ARGV[1]  "requeue" or "delete"
-- ARGV[2]  RQ's key prefix
-- ARGV[3]  time now, as RQ writes it
-- ARGV[4]  queue from whose registry to remove ids of jobs that are gone, or ""
-- ARGV[5+] id of each job
-- Returns {{id, status, ...} of jobs that are not failed, with "" for jobs that are gone,
--          {key of a rate limit that requeued jobs wait for, ...}}
local how, prefix, now, registry = unpack(ARGV, 1, 4)
local epoch = redis.call('TIME')[1]
local refused, limits = {}, {}

local function requeue(id, job, queue, ttl, key, concurrency)
  redis.call('HDEL', job, 'farpool_attempts', 'started_at', 'ended_at', 'worker_name',
    'last_heartbeat')
  if tonumber(ttl or '') then
    redis.call('EXPIRE', job, ttl)
  else
    -- Otherwise the job would still expire as a failure.
    redis.call('PERSIST', job)
  end
  redis.call('PERSIST', job .. ':dependents')
  if key and key ~= '' then
    -- As RQ enqueues such jobs; RQ's own script moves them into their queue.
    redis.call('HSET', job, 'status', 'rate_limited')
    redis.call('SADD', prefix .. ':rl-keys', key)
    redis.call('HSET', prefix .. ':rl:' .. key, 'concurrency', concurrency)
    redis.call('ZADD', prefix .. ':rl:' .. key .. ':rate_limited', epoch, id)
    limits[#limits + 1] = key
  else
    redis.call('HSET', job, 'status', QUEUED, 'enqueued_at', now)
    redis.call('SADD', KEYS[1], prefix .. ':queue:' .. queue)
    redis.call('RPUSH', prefix .. ':queue:' .. queue, id)
  end
end

local function delete(id, job, group)
  redis.call('UNLINK', job, job .. ':dependents', prefix .. ':job::' .. id .. ':dependencies',
    prefix .. ':results:' .. id, prefix .. ':executions:' .. id)
  if group and group ~= '' then
    redis.call('SREM', prefix .. ':group:' .. group, id)
  end
end

for a = 5, #ARGV do
  local id = ARGV[a]
  local job = prefix .. ':job:' .. id
  local status, queue, tag, ttl, rate_limit, concurrency, group = unpack(call('HMGET', job,
    'status', 'origin', 'farpool', 'ttl', 'rate_limit_key', 'rate_limit_concurrency', 'group_id'))
  -- RQ's registry of failed jobs holds stopped ones too.
  local failed = (status == FAILED or status == STOPPED) and queue
  if failed and redis.call('ZREM', prefix .. ':failed:' .. queue, id) == 1 then
    tag = read_tag(tag)
    if tag and tag.session ~= '' then
      -- A caller that has not fetched this outcome yet gets the next one.
      redis.call('HDEL', prefix .. ':farpool:results:' .. tag.session, id)
    end
    if how == 'requeue' then
      requeue(id, job, queue, ttl, rate_limit, concurrency)
    else
      delete(id, job, group)
    end
  else
    refused[#refused + 1] = id
    refused[#refused + 1] = status or ''
    if not status and registry ~= '' then
      redis.call('ZREM', prefix .. ':failed:' .. registry, id)
    end
  end
end
return {refused, limits}
