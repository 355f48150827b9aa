-- Move a dead letter back into an inbox, once. The id window is told that the message waits again.
-- KEYS: dead letter stream, inbox stream, current id window
-- ARGV: dead letter's stream id, message id, claim ('' where the window is not concerned), the fields
-- Returns the new stream id, or '' when the dead letter is not there any more.
if redis.call('XDEL', KEYS[1], ARGV[1]) == 0 then
  return ''
end
local entry = redis.call('XADD', KEYS[2], '*', unpack(ARGV, 4))
if ARGV[3] ~= '' then
  redis.call('HSET', KEYS[3], ARGV[2], 'q' .. entry .. ARGV[3])
end
return entry
