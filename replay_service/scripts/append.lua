-- Append one trajectory: spec check, duplicate check, store, count, evict, admit. Atomic, one round trip.
--
-- KEYS  1 run   2 counters   3 online stream   4 actor hash
-- ARGV  1 spec fingerprint   2 actor id   3 epoch   4 sequence   5 steps in the message   6 message
--       7 steps wanted next  8 policy version that acted   9 '1' when the episode ends with this message
--       10 return of that episode   11 success of that episode ('1', '0' or '' for unknown)
--       12 number of the episode   13 its steps, this message included
--
-- Returns {status, policy_version, lease, wait_reason, detail}
--   'stored'       the message is in the stream and counted
--   'duplicate'    its sequence had been stored before: nothing was added
--   'gap'          an earlier sequence is missing: resend from `detail`; nothing was added
--   'stale_epoch'  a newer incarnation has registered (`detail` is its epoch): nothing was added
--   'wrong_spec'   the run's fingerprint is `detail`: nothing was added

local run, counters, stream, actor = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local sequence, steps = tonumber(ARGV[4]), tonumber(ARGV[5])

local fingerprint = redis.call('HGET', run, 'spec_fingerprint') or ''
if fingerprint ~= ARGV[1] then
  return {'wrong_spec', 0, 0, '', fingerprint}
end
local epoch = redis.call('HGET', actor, 'epoch') or '0'
if epoch ~= ARGV[3] then
  return {'stale_epoch', 0, 0, '', epoch}
end

local status, detail = 'stored', ''
local expected = number(actor, 'next_sequence')
if sequence < expected then
  status = 'duplicate'
  redis.call('HINCRBY', actor, 'duplicate_steps', steps)
  redis.call('HINCRBY', counters, 'duplicate_steps', steps)
elseif sequence > expected then
  return {'gap', number(run, 'policy_version'), number(actor, 'lease'), '', tostring(expected)}
else
  local first = redis.call('HINCRBY', counters, 'appended_steps', steps) - steps
  redis.call('XADD', stream, '*', 'm', ARGV[6], 'a', ARGV[2], 'e', ARGV[3], 's', ARGV[4], 'n', ARGV[5], 'f', first)
  redis.call('HINCRBY', counters, 'env_steps', steps)
  redis.call('HINCRBY', actor, 'stored_steps', steps)
  redis.call('HINCRBY', actor, 'next_sequence', 1)
  redis.call('HSET', actor, 'policy_version', ARGV[8], 'episode', ARGV[12], 'episode_steps', ARGV[13],
    'episode_ended', ARGV[9])
  if ARGV[9] == '1' then
    redis.call('HINCRBY', actor, 'episodes', 1)
    redis.call('HINCRBY', counters, 'episodes', 1)
    redis.call('HSET', actor, 'last_return', ARGV[10], 'last_success', ARGV[11])
    if ARGV[11] == '1' then
      redis.call('HINCRBY', actor, 'successes', 1)
      redis.call('HINCRBY', counters, 'successes', 1)
    end
  end
  local capacity = number(run, 'replay_capacity')
  local retained = redis.call('HINCRBY', counters, 'retained_steps', steps)
  while retained > capacity do
    local oldest = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
    if not oldest then break end
    redis.call('XDEL', stream, oldest[1])
    retained = redis.call('HINCRBY', counters, 'retained_steps', 0 - counted_steps(oldest)) -- Redis cannot read Lua's -0
  end
  give_back(counters, actor, steps)
end

touch(actor)
local lease, reason = admit(run, counters, actor, tonumber(ARGV[7]))
return {status, number(run, 'policy_version'), lease, reason, detail}
