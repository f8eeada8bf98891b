-- The helpers of all scripts: script.py inserts this file after the flags line of each.

-- RQ's statuses of a job.
local QUEUED, STARTED, FINISHED, FAILED = 'queued', 'started', 'finished', 'failed'
local STOPPED, CANCELED = 'stopped', 'canceled'
-- First letters of a claim, before "EXECUTION QUEUE". An exhausted job has used all its attempts
-- and is to be failed.
local IS_CLAIMED, IS_STARTED, IS_EXHAUSTED = 'c ', 's ', 'x '
-- Number of a fence's digits that name its owner; also in worker/registration.py.
local OWNER_DIGITS = 12
-- Seconds that RQ keeps a list of executions longer than its members.
local EXECUTIONS_SECONDS = 60
-- Most arguments of one call, as Lua's stack is small.
local MOST_ARGUMENTS = 1000

-- Tells whether an error means that the user lacks a right; the second text is Redis 7.0's.
local function is_refusal(text)
  return string.find(text, 'ACL failure', 1, true)
    or string.find(text, 'The user executing the script', 1, true)
end

-- Calls a command for a key that other programs write too. WRONGTYPE is tolerated: a script that
-- fails halfway would lose jobs. Missing ACL rights do raise, so that an operator notices.
local function call(...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err and is_refusal(reply.err) then
    error(reply)
  end
  return reply
end

-- Calls a command that takes any number of arguments after its key.
local function call_with_all(command, key, arguments)
  for first = 1, #arguments, MOST_ARGUMENTS do
    local last = math.min(first + MOST_ARGUMENTS - 1, #arguments)
    redis.call(command, key, unpack(arguments, first, last))
  end
end

local function server_time()
  local now = redis.call('TIME')
  return tonumber(now[1]) + tonumber(now[2]) / 1e6
end

local function same_owner(fence, other)
  return string.sub(fence, 1, OWNER_DIGITS) == string.sub(other, 1, OWNER_DIGITS)
end

-- Reads the tag of a job (`Tag` in shared/records.py); nil for a job of RQ's. A newer protocol may
-- add flags, and words at the end.
local tags = {}
local function read_tag(text)
  if not text or text == '' then
    return nil
  end
  local tag = tags[text]
  if not tag then
    local protocol, rest = string.match(text, '^(%d%d?%d?%d?) (.*)$')
    local session, flags, attempts =
      string.match((rest or '') .. ' ', '^([0-9a-f]*) ([a-z]*) (%d+) %d+%.?%d* ')
    tag = {
      protocol = tonumber(protocol) or 0,
      session = session or '',
      leased = flags and string.find(flags, 'l', 1, true),
      once = flags and string.find(flags, 'm', 1, true),
      attempts = tonumber(attempts) or 0,
    }
    tags[text] = tag
  end
  return tag
end

-- Charges a job an attempt; returns whether it is exhausted. `default` is its number of attempts
-- if its tag does not set them.
local function charge(job, tag, default)
  local allowed = tag and tag.attempts > 0 and tag.attempts or default
  local attempts = call('HINCRBY', job, 'farpool_attempts', 1)
  -- An error means that another program wrote no number there.
  return type(attempts) == 'table' or attempts >= allowed
end

-- Keeps RQ's records of an execution for `ttl` seconds. `only` is an option of ZADD: 'XX' to renew
-- existing members only, 'CH' to add missing ones too.
local function keep_execution(prefix, id, execution, queue, epoch, ttl, only)
  local member = id .. ':' .. execution
  local record, executions = prefix .. ':execution:' .. member, prefix .. ':executions:' .. id
  call('HSET', record, 'last_heartbeat', epoch)
  call('EXPIRE', record, ttl)
  call('ZADD', prefix .. ':wip:' .. queue, only, epoch + ttl, member)
  call('ZADD', executions, only, epoch + ttl + EXECUTIONS_SECONDS, execution)
  call('EXPIRE', executions, ttl + EXECUTIONS_SECONDS)
end

-- Removes RQ's records of an execution; returns whether RQ's registry still had it.
local function end_execution(prefix, id, execution, queue, of_worker)
  local member = id .. ':' .. execution
  local known = call('ZREM', prefix .. ':wip:' .. queue, member)
  call('DEL', prefix .. ':execution:' .. member)
  call('ZREM', prefix .. ':executions:' .. id, execution)
  call('SREM', of_worker, member)
  return known ~= 0
end

-- Tells whether RQ's code has ended an execution that left its registry, and has put the job where
-- it belongs: back into a queue only if RQ retries or repeats it.
local function ended_by_rq(job, status)
  if status == QUEUED or status == STARTED then
    local again = call('HMGET', job, 'retries_left', 'repeats_left', 'number_of_retries')
    return again[1] or again[2] or again[3]
  end
  return status == FINISHED or status == FAILED
end

-- Puts a job back at the head of its queue; false if that is not a list: the job stays claimed.
local function put_back(prefix, id, queue)
  call('HSET', prefix .. ':job:' .. id, 'status', QUEUED)
  return type(call('LPUSH', prefix .. ':queue:' .. queue, id)) == 'number'
end
