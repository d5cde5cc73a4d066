-- Claim an actor id that nobody works under: never used, or silent for long.
--
-- KEYS  1 hash of the actor
-- ARGV  1 milliseconds of silence after which an id is free again
-- Returns 1 when it is the caller's now, else 0.

local actor = KEYS[1]
local seen = redis.call('HGET', actor, 'last_seen_ms')
if seen then
  local now = redis.call('TIME')
  if now[1] * 1000 + math.floor(now[2] / 1000) - tonumber(seen) < tonumber(ARGV[1]) then
    return 0
  end
end
touch(actor)
return 1
