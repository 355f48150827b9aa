#!lua flags=allow-oom
-- Note that this boot has begun: its number, and where every stream ended before it. Once for each boot.
-- Stream ids and wall clocks do not tell boots apart on a board without a clock battery; these marks do.
-- KEYS: boots (boot id -> number), marks (number|stream -> last id), then the streams
-- ARGV: boot id, boots to keep, boot clock in ns
-- The mark without a stream says what the server's clock (ms) and the boot clock were: "ms-ns".
-- Returns the number of this boot.
local known = redis.call('HGET', KEYS[1], ARGV[1])
if known then
  return tonumber(known)
end
local number, oldest, oldest_id = 0, nil, nil
local boots = redis.call('HGETALL', KEYS[1])
for at = 1, #boots, 2 do
  local one = tonumber(boots[at + 1])
  number = math.max(number, one + 1)
  if not oldest or one < oldest then oldest, oldest_id = one, boots[at] end
end
redis.call('HSET', KEYS[1], ARGV[1], number)
local time = redis.call('TIME')
redis.call('HSET', KEYS[2], number .. '|', string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)) .. '-' .. ARGV[3])
for at = 3, #KEYS do
  local info = redis.call('XINFO', 'STREAM', KEYS[at])
  for item = 1, #info, 2 do
    if info[item] == 'last-generated-id' then
      redis.call('HSET', KEYS[2], number .. '|' .. KEYS[at], info[item + 1])
    end
  end
end
if #boots / 2 >= tonumber(ARGV[2]) then
  redis.call('HDEL', KEYS[1], oldest_id)
  for _, mark in ipairs(redis.call('HKEYS', KEYS[2])) do
    if string.sub(mark, 1, #tostring(oldest) + 1) == oldest .. '|' then
      redis.call('HDEL', KEYS[2], mark)
    end
  end
end
return number
