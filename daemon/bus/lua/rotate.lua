#!lua flags=allow-oom
-- Let the deduplication window grow older, and begin a new generation of it when this one is full and old enough.
-- KEYS: current id window, previous one, state of the window, fenced consumers, fenced consumers of the generation before
-- ARGV: boot id, boot clock in ns, ids a generation must hold, age in ns it must have, fenced names worth a purge
-- Age is the sum of boot-clock time that was seen to pass: no wall clock, no expiry. Time between two boots is not counted,
-- because nobody can know it. A generation is marked by a field that cannot be a message id, so that one that was rotated
-- by its size (append) is noticed.
-- Returns ids, age in ns, 1 when the ids were rotated, 1 when old fenced names were purged.
local MARK = ' generation'
local state = redis.call('HMGET', KEYS[3], 'boot_id', 'mono', 'age', 'fenced_age', 'generation')
local mono, age, fenced_age = tonumber(ARGV[2]), tonumber(state[3] or 0), tonumber(state[4] or 0)
local generation = tonumber(state[5] or 0)
local passed = 0
if state[1] == ARGV[1] then passed = math.max(0, mono - tonumber(state[2])) end

local ids = redis.call('HLEN', KEYS[1])
local marks = redis.call('HMGET', KEYS[1], MARK, ' before')
if marks[1] then ids = ids - 1 end
if marks[2] then ids = ids - 1 end
local rotated, purged = 0, 0
if ids == 0 then
  age = 0
elseif marks[1] ~= tostring(generation) then
  generation = generation + 1
  redis.call('HSET', KEYS[1], MARK, generation)
  age = 0
else
  age = age + passed
  if ids >= tonumber(ARGV[3]) and age >= tonumber(ARGV[4]) then
    redis.call('UNLINK', KEYS[2])
    redis.call('RENAME', KEYS[1], KEYS[2])
    generation = generation + 1
    -- append looks into the previous window only where ' before' says that there is one
    redis.call('HSET', KEYS[1], ' before', 1, MARK, generation)
    age, rotated = 0, 1
  end
end

-- the same for the names of consumers that lost their lease: a name goes when it was there one whole generation
fenced_age = fenced_age + passed
if fenced_age >= tonumber(ARGV[4]) and redis.call('HLEN', KEYS[4]) >= tonumber(ARGV[5]) then
  local old = redis.call('SMEMBERS', KEYS[5])
  for at = 1, #old, 1000 do
    redis.call('HDEL', KEYS[4], unpack(old, at, math.min(#old, at + 999)))
  end
  redis.call('DEL', KEYS[5])
  local names = redis.call('HKEYS', KEYS[4])
  for at = 1, #names, 1000 do
    redis.call('SADD', KEYS[5], unpack(names, at, math.min(#names, at + 999)))
  end
  fenced_age, purged = 0, #old > 0 and 1 or 0
end
redis.call('HSET', KEYS[3], 'boot_id', ARGV[1], 'mono', ARGV[2], 'age', string.format('%.0f', age),
  'fenced_age', string.format('%.0f', fenced_age), 'generation', generation)
return {ids, string.format('%.0f', age), rotated, purged}
