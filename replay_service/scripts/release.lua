-- Give back the lease of an actor that left or fell silent.
--
-- KEYS  1 counters   2 actor hash
-- ARGV  1 milliseconds of silence after which a lease lapses; 0 releases it at once
--       2 epoch of the actor that leaves; none when the service asks
-- Returns the number of steps given back; -1, and gives nothing, when the lease is that of a newer incarnation.

local counters, actor = KEYS[1], KEYS[2]
if ARGV[2] and tonumber(ARGV[2]) < number(actor, 'epoch') then
  return -1
end
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
