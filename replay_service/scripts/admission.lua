-- Prelude of all scripts (they are concatenated): the actors' side of the limiter, and what scripts share.
--
-- An actor asks to be admitted for `want` steps before it takes them. What it was admitted for and has not yet
-- stored is its lease (field `lease` of its hash); `leased_steps` of the counters is the sum of all leases. So
-- env_steps + leased_steps can pass neither the band nor the budget, however many actors ask at once.
--
--   room(band)   = initial_env_steps + tolerance_env_steps + online_grad_steps / utd_ratio - env_steps - leased_steps
--   room(budget) = num_env_steps - env_steps - leased_steps
--
-- The hash `run` is read and never written: actors, in whose name most scripts run, have no right to change it.
--
-- Returns the lease after the call and why it is not `want`: '' | 'phase' | 'limiter' | 'budget'.

local function number(key, field)
  return tonumber(redis.call('HGET', key, field) or '0')
end

local function admit(run, counters, actor, want)
  local lease = number(actor, 'lease')
  local taken = number(counters, 'env_steps') + number(counters, 'leased_steps')
  local budget = number(run, 'num_env_steps') - taken
  local phase = redis.call('HGET', run, 'phase')
  if phase ~= 'online' then
    return lease, phase == 'finished' and budget <= 0 and 'budget' or 'phase'
  end
  local need = want - lease
  if need <= 0 then
    return lease, ''
  end
  if budget <= 0 then
    return lease, 'budget'
  end
  need = math.min(need, budget)
  local band = number(run, 'initial_env_steps') + number(run, 'tolerance_env_steps')
    + math.floor(number(run, 'online_grad_steps') / number(run, 'utd_ratio')) - taken
  if need > band then
    return lease, 'limiter'
  end
  redis.call('HINCRBY', actor, 'lease', need)
  redis.call('HINCRBY', counters, 'leased_steps', need)
  return lease + need, ''
end

-- Steps of a stream entry as append.lua counted them; 0 for an entry that it did not write. `entry` is XRANGE's.
local function counted_steps(entry)
  local fields = {}
  for i = 1, #entry[2], 2 do fields[entry[2][i]] = entry[2][i + 1] end
  for _, name in ipairs({'a', 'n', 'f'}) do
    local text = fields[name] or ''
    if not text:match('^%d+$') or #text > 15 then
      return 0, fields
    end
  end
  return tonumber(fields['n']), fields
end

local function touch(actor)
  local now = redis.call('TIME')
  redis.call('HSET', actor, 'last_seen_ms', now[1] * 1000 + math.floor(now[2] / 1000))
end

local function give_back(counters, actor, steps)
  local released = math.min(steps, number(actor, 'lease'))
  if released > 0 then
    redis.call('HINCRBY', actor, 'lease', -released)
    redis.call('HINCRBY', counters, 'leased_steps', -released)
  end
end
