-- Move a dead letter back into an inbox, once. The id window is told that the message waits again.
-- KEYS: dead letter stream, inbox stream, current id window, what this very call did before (its answer was lost)
-- ARGV: dead letter's stream id, message id, claim ('' where the window is not concerned), ms to remember, the fields
-- Returns the new stream id, or '' when the dead letter is not there any more.
if redis.call('XDEL', KEYS[1], ARGV[1]) == 0 then
  return redis.call('GET', KEYS[4]) or ''
end
local entry = redis.call('XADD', KEYS[2], '*', unpack(ARGV, 5))
redis.call('SET', KEYS[4], entry, 'PX', ARGV[4])
if ARGV[3] ~= '' then
  redis.call('HSET', KEYS[3], ARGV[2], 'q' .. entry .. ARGV[3])
end
return entry
