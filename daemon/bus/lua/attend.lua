#!lua flags=allow-oom
-- Write an application's presence, if what was seen of its heartbeats still holds.
-- KEYS: heartbeats, applications, status
-- ARGV: application, 'online' or 'offline', wall-clock seconds (for people), then for each heartbeat: field, the count seen
-- Returns 1 when it was written.
local online = ARGV[2] == 'online'
local holds = not online
local seen = {}
for at = 4, #ARGV, 2 do seen[ARGV[at]] = ARGV[at + 1] end
if online then
  for field in pairs(seen) do
    holds = holds or redis.call('HEXISTS', KEYS[1], field) == 1
  end
else
  local beats, prefix = redis.call('HGETALL', KEYS[1]), ARGV[1] .. '|'
  for at = 1, #beats, 2 do
    if string.sub(beats[at], 1, #prefix) == prefix and beats[at + 1] ~= seen[beats[at]] then
      holds = false -- a new one, or one that beats again
    end
  end
end
if not holds then
  return 0
end
redis.call('SADD', KEYS[2], ARGV[1])
if online then
  redis.call('HSET', KEYS[3], 'app_id', ARGV[1], 'status', 'online', 'last_seen', ARGV[3])
else
  redis.call('HSET', KEYS[3], 'app_id', ARGV[1], 'status', 'offline')
end
return 1
