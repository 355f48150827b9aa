#!lua flags=allow-oom
-- One heartbeat, and the presence that goes with it. (allow-oom: a full bus must not make live consumers look dead.)
-- KEYS: heartbeats, presence of the app, all apps.  ARGV: field among the heartbeats, app, wall-clock seconds
local count = redis.call('HINCRBY', KEYS[1], ARGV[1], 1)
redis.call('HSET', KEYS[2], 'app_id', ARGV[2], 'status', 'online', 'last_seen', ARGV[3])
if count == 1 then
  redis.call('SADD', KEYS[3], ARGV[2])
end
return count
