-- Replace a dead letter by an edited one, once.
-- KEYS: dead letter stream, what this very call did before (its answer was lost)
-- ARGV: its stream id, ms to remember, the fields
-- Returns the new stream id, or '' when it is not there any more.
if redis.call('XDEL', KEYS[1], ARGV[1]) == 0 then
  return redis.call('GET', KEYS[2]) or ''
end
local entry = redis.call('XADD', KEYS[1], '*', unpack(ARGV, 3))
redis.call('SET', KEYS[2], entry, 'PX', ARGV[2])
return entry
