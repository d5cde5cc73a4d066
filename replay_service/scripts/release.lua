-- Give back the lease of an actor that left or fell silent.
--
-- KEYS  1 counters   2 actor hash
-- ARGV  1 milliseconds of silence after which a lease lapses; 0 releases it at once
-- Returns the number of steps given back.

local counters, actor = KEYS[1], KEYS[2]
local lease = number(actor, 'lease')
if lease == 0 then
  return 0
end
local now = redis.call('TIME')
local silent = now[1] * 1000 + math.floor(now[2] / 1000) - number(actor, 'last_seen_ms')
if silent < tonumber(ARGV[1]) then
  return 0
end
give_back(counters, actor, lease)
return lease
