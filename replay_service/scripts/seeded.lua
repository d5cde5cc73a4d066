-- Leave the phase `seeding`; a run that has left it already stays where it is, however late this comes.
--
-- KEYS  1 run
-- ARGV  1 the phase that follows
-- Returns the phase of the run.

local run = KEYS[1]
if redis.call('HGET', run, 'phase') == 'seeding' then
  redis.call('HSET', run, 'phase', ARGV[1])
end
return redis.call('HGET', run, 'phase')
