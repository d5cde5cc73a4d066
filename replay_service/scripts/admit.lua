-- Ask for steps without sending any; also the heartbeat of an actor that waits.
--
-- KEYS  1 run   2 counters   3 actor hash
-- ARGV  1 epoch   2 steps wanted
-- Returns {status, policy_version, lease, wait_reason, detail} as append.lua, with status 'ok' or 'stale_epoch'.

local run, counters, actor = KEYS[1], KEYS[2], KEYS[3]
local epoch = redis.call('HGET', actor, 'epoch') or '0'
if epoch ~= ARGV[1] then
  return {'stale_epoch', 0, 0, '', epoch}
end
touch(actor)
local lease, reason = admit(run, counters, actor, tonumber(ARGV[2]))
return {'ok', number(run, 'policy_version'), lease, reason, ''}
