-- Ask for steps without sending any; also the heartbeat of an actor that waits.
--
-- KEYS  1 run   2 counters   3 actor hash
-- ARGV  1 epoch   2 steps wanted   3 sequence that the actor would send next
-- Returns {status, policy_version, lease, wait_reason, detail} as append.lua, with status 'ok', 'gap' or 'stale_epoch'.

local run, counters, actor = KEYS[1], KEYS[2], KEYS[3]
local epoch = redis.call('HGET', actor, 'epoch') or '0'
if epoch ~= ARGV[1] then
  return {'stale_epoch', 0, 0, '', epoch}
end
touch(actor)
-- A Redis that died and lost an append has the lease of those steps again: they are to be sent, not taken anew.
local expected = number(actor, 'next_sequence')
if expected < tonumber(ARGV[3]) then
  return {'gap', number(run, 'policy_version'), number(actor, 'lease'), '', tostring(expected)}
end
local lease, reason = admit(run, counters, actor, tonumber(ARGV[2]))
return {'ok', number(run, 'policy_version'), lease, reason, ''}
