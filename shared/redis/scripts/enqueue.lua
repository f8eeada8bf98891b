#!lua
-- Adds jobs to a queue as RQ's enqueue does, many in one step.
-- A call that is repeated after a lost reply finds its own mark and adds nothing. Without a mark,
-- each job is looked up, because another call may have added it.
-- KEYS[1]  set    rq:queues                    keys of the queues
-- KEYS[2]  list   rq:queue:QUEUE               ids of the jobs that wait
-- KEYS[3]  string rq:farpool:sent:ID           mark of this call
-- KEYS[4]  hash   rq:farpool:session:SESSION   exists while the session has a lease
-- KEYS[5]  hash   rq:farpool:results:SESSION   job id -> outcome
-- KEYS[6+] hash   rq:job:ID                    each job
-- ARGV[1]  "front" or "back"
-- ARGV[2]  seconds until an unstarted job expires, or ""
-- ARGV[3]  seconds to keep the mark; "" to look up each job instead
-- ARGV[4]  "1" if the session needs a lease, else ""
-- ARGV[5]  largest length of the queue, or ""
-- ARGV[6]  number of jobs that need room, these included
-- ARGV[7]  "1" if the jobs are signed, else ""
-- ARGV[8]  count n of the strings that come next
-- ARGV[9+] n strings (field, value, ...) for every job,
--          then for each job: id, data, description, and its signature if they are signed
-- Returns the number of jobs added
--      or -1: the lease of the session has ended
--      or {number of jobs that wait}: the queue lacks room
local where, ttl, mark_seconds, leased, room, together, signed, shared = unpack(ARGV, 1, 8)
local push = where == 'front' and 'LPUSH' or 'RPUSH'
local again = mark_seconds == ''
local limit = tonumber(room)
local count = tonumber(shared)
if leased ~= '' and redis.call('EXISTS', KEYS[4]) == 0 then
  return -1
end
-- Keys of the wrong type fail the call here, before it leaves a mark.
redis.call('LLEN', KEYS[2])
redis.call('SADD', KEYS[1], KEYS[2])
if not again and not redis.call('SET', KEYS[3], '', 'NX', 'EX', mark_seconds) then
  return 0
end
local length = limit and redis.call('LLEN', KEYS[2])
if limit and length + tonumber(together) > limit then
  redis.call('DEL', KEYS[3])
  return {length}
end
local fields = {}
for i = 1, count do
  fields[i] = ARGV[8 + i]
end
fields[count + 1] = 'data'
fields[count + 3] = 'description'
local width = 3
if signed ~= '' then
  fields[count + 5] = 'farpool_signature'
  width = 4
end

local a = 9 + count
local ids = {}
for k = 6, #KEYS do
  local id, data, description, signature = unpack(ARGV, a, a + width - 1)
  local known = again
    and (redis.call('EXISTS', KEYS[k]) == 1 or redis.call('HEXISTS', KEYS[5], id) == 1)
  if not known then
    fields[count + 2], fields[count + 4], fields[count + 6] = data, description, signature
    redis.call('HSET', KEYS[k], unpack(fields))
    if ttl ~= '' then
      redis.call('EXPIRE', KEYS[k], ttl)
    end
    ids[#ids + 1] = id
  end
  a = a + width
end
call_with_all(push, KEYS[2], ids)
return #ids
