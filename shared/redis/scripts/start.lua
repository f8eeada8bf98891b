#!lua flags=allow-oom
-- Marks claimed jobs as started, and writes RQ's records of their executions.
-- KEYS[1]  hash   rq:farpool:claims:NODE      job id -> "c|s|x EXECUTION QUEUE"
-- KEYS[2]  set    rq:worker:NODE:executions   "JOB:EXECUTION"
-- KEYS[3+] hash   rq:job:ID                   each job
-- ARGV[1]  RQ's key prefix
-- ARGV[2]  node
-- ARGV[3]  time now, as RQ writes it
-- ARGV[4]  seconds after which RQ counts the executions as abandoned
-- ARGV[5+] for each job: id, execution, queue, time of its start
-- Returns {id of a job whose claim is gone, or that was canceled, deleted or ended meanwhile, ...}
local prefix, node, now, ttl = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local FIRST_KEY, FIRST, WIDTH = 3, 5, 4
local epoch = math.floor(server_time())
local gone = {}
for k = FIRST_KEY, #KEYS do
  local job, a = KEYS[k], FIRST + (k - FIRST_KEY) * WIDTH
  local id, execution, queue, started = unpack(ARGV, a, a + WIDTH - 1)
  local rest = execution .. ' ' .. queue
  local claim = redis.call('HGET', KEYS[1], id)
  local status = call('HGET', job, 'status')
  local wanted = status == QUEUED or status == STARTED
  if claim == IS_CLAIMED .. rest and wanted then
    redis.call('HSET', KEYS[1], id, IS_STARTED .. rest)
    call('HSET', job, 'status', STARTED, 'started_at', started, 'last_heartbeat', now,
      'worker_name', node)
    local member = id .. ':' .. execution
    call('HSET', prefix .. ':execution:' .. member, 'id', execution, 'job_id', id,
      'created_at', epoch, 'worker_name', node)
    keep_execution(prefix, id, execution, queue, epoch, ttl, 'CH')
    call('SADD', KEYS[2], member)
  elseif claim ~= IS_STARTED .. rest or not wanted then
    gone[#gone + 1] = id
  end
end
call('EXPIRE', KEYS[2], ttl + EXECUTIONS_SECONDS)
return gone
