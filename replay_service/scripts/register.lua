-- Register one incarnation of an actor: a new epoch, sequence 0, and the lease of the one before given back.
--
-- KEYS  1 run   2 counters   3 actor hash   4 set of actors
-- ARGV  1 spec fingerprint   2 actor id   3 '1' when a crashed actor is being replaced
--       4 a word that only this call carries: when its answer is lost and it is sent again, nothing is counted twice
-- Returns {epoch, '', episode, steps, ended} with the newest episode that this actor has stored a part of, how many
-- of its steps are stored and whether it ended ('' for all three when there is none), or {0, the run's fingerprint}
-- when the spec differs.

local run, counters, actor = KEYS[1], KEYS[2], KEYS[3]
local function registered(epoch)
  local answer = {epoch, ''}
  for _, field in ipairs({'episode', 'episode_steps', 'episode_ended'}) do
    answer[#answer + 1] = redis.call('HGET', actor, field) or ''
  end
  return answer
end
local fingerprint = redis.call('HGET', run, 'spec_fingerprint') or ''
if fingerprint ~= ARGV[1] then
  return {0, fingerprint}
end
if redis.call('HGET', actor, 'registration') == ARGV[4] then
  return registered(number(actor, 'epoch'))
end
redis.call('HSET', actor, 'registration', ARGV[4])
give_back(counters, actor, number(actor, 'lease'))
redis.call('HSET', actor, 'next_sequence', 0)
redis.call('SADD', KEYS[4], ARGV[2])
if ARGV[3] == '1' then
  redis.call('HINCRBY', counters, 'actor_restarts', 1)
  redis.call('HINCRBY', actor, 'restarts', 1)
end
touch(actor)
return registered(redis.call('HINCRBY', actor, 'epoch', 1))
