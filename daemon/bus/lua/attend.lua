#!lua flags=allow-oom
-- Write an application's presence, if what was seen of its heartbeats still holds.
-- KEYS: heartbeats, applications, status
-- ARGV: application, 'online' or 'offline', wall-clock seconds (for people), then for each heartbeat: field, the count seen
-- Returns 1 when it was written.
local online = ARGV[2] == 'online'
local holds = not online
for at = 4, #ARGV, 2 do
  local count = redis.call('HGET', KEYS[1], ARGV[at])
  if online then
    holds = holds or count ~= false
  elseif count and count ~= ARGV[at + 1] then
    holds = false
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
