-- Move one message of the online stream to the quarantine, with its reason, and take it out of the counts.
--
-- KEYS  1 counters   2 online stream   3 quarantine stream   4 hash of the entry's actor
-- ARGV  1 entry id   2 reason   3 longest quarantine, in messages
-- Returns the number of steps that were moved, also to a call that is repeated because its answer was lost; or -1 when
-- the entry is gone otherwise.
--
-- An entry without the fields of append.lua was written by a stranger: it was never counted, so only it is moved.

local counters, stream, quarantine, actor = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local entry = redis.call('XRANGE', stream, ARGV[1], ARGV[1])[1]
if not entry then
  local last = redis.call('XREVRANGE', quarantine, '+', '-', 'COUNT', 1)[1]
  if not last then
    return -1
  end
  local moved, its = counted_steps(last)
  return its['id'] == ARGV[1] and moved or -1
end
local steps, fields = counted_steps(entry)
redis.call('XADD', quarantine, 'MAXLEN', '~', ARGV[3], '*', 'reason', ARGV[2], 'id', ARGV[1],
  'a', fields['a'] or '', 'e', fields['e'] or '', 's', fields['s'] or '', 'n', fields['n'] or '',
  'f', fields['f'] or '', 'm', fields['m'] or '')
redis.call('XDEL', stream, ARGV[1])
redis.call('HINCRBY', counters, 'quarantined_messages', 1)
if steps == 0 then
  return 0
end
redis.call('HINCRBY', counters, 'env_steps', -steps)
redis.call('HINCRBY', counters, 'retained_steps', -steps)
redis.call('HINCRBY', counters, 'quarantined_steps', steps)
redis.call('HINCRBY', actor, 'stored_steps', -steps)
redis.call('HINCRBY', actor, 'quarantined_steps', steps)
return steps
