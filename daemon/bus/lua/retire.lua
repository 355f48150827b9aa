#!lua flags=allow-oom
-- A consumer leaves in order: forget it where it holds nothing; where it does, let a successor take that at once.
-- KEYS: heartbeats, then the inbox streams
-- ARGV: group, consumer, its field among the heartbeats
-- Returns the number of entries that wait for a successor.
local left = 0
for at = 2, #KEYS do
  local ok, held = pcall(redis.call, 'XPENDING', KEYS[at], ARGV[1], '-', '+', 1000, ARGV[2])
  if ok and #held > 0 then
    left = left + #held
  elseif ok then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[at], ARGV[1], ARGV[2])
  end
end
if left > 0 then
  redis.call('HSET', KEYS[1], ARGV[3], -1)
else
  redis.call('HDEL', KEYS[1], ARGV[3])
end
return left
