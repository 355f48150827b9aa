#!lua flags=allow-oom
-- Remove the heartbeat of a dead consumer that holds nothing, and the consumer with it.
-- KEYS: heartbeats, then the inbox streams
-- ARGV: group, consumer, its field among the heartbeats, the count seen
-- Returns 1 when it was removed; 0 when it beats again, or its entries wait for a successor.
if redis.call('HGET', KEYS[1], ARGV[3]) ~= ARGV[4] then
  return 0
end
for at = 2, #KEYS do
  local ok, held = pcall(redis.call, 'XPENDING', KEYS[at], ARGV[1], '-', '+', 1, ARGV[2])
  if ok and #held > 0 then
    return 0
  end
end
for at = 2, #KEYS do
  pcall(redis.call, 'XGROUP', 'DELCONSUMER', KEYS[at], ARGV[1], ARGV[2])
end
return redis.call('HDEL', KEYS[1], ARGV[3])
