#!lua flags=allow-oom
-- A consumer that stops gives away what it has not begun, while it still works on the rest.
-- KEYS: heartbeats, fenced consumers, then the inbox streams
-- ARGV: group, consumer, the name that holds the entries from now on, its field among the heartbeats,
--       then for each stream: number of entries, their ids
-- Returns the number given away. (The delivery counts stay: nothing has begun.)
if redis.call('HEXISTS', KEYS[2], ARGV[2]) == 1 then
  return 0
end
local given, at = 0, 5
for index = 3, #KEYS do
  local last = at + tonumber(ARGV[at])
  for number = at + 1, last do
    local claimed = redis.pcall('XCLAIM', KEYS[index], ARGV[1], ARGV[3], 0, ARGV[number], 'JUSTID')
    given = given + #claimed
  end
  at = last + 1
end
if given > 0 then
  redis.call('HSET', KEYS[1], ARGV[4], -1)
end
return given
