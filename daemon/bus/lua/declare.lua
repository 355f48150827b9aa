#!lua
-- Declare a compact topic: what is constant in it, and from which entry on its times are of the publisher's boot.
-- KEYS: the declaration, the topic's stream
-- ARGV: boot id, boots to remember, then names and values of the declaration
-- The list of boots is JSON: [[first stream id, boot id], ...]. A boot is added when it is not the last one. The last one
-- in the list whose first id is not above an entry's is that entry's.
-- Returns the number of boots in the list.
local known = redis.call('HMGET', KEYS[1], 'boots', 'boot_id')
local readable, boots = pcall(cjson.decode, known[1] or '')
if not readable or type(boots) ~= 'table' then
  boots = {known[2] and {'0-1', known[2]} or nil}  -- an earlier version knew one boot only
end
local first = '0-1'
if redis.call('EXISTS', KEYS[2]) == 1 then
  local info = redis.call('XINFO', 'STREAM', KEYS[2])
  for at = 1, #info, 2 do
    if info[at] == 'last-generated-id' then
      local ms, number = string.match(info[at + 1], '(%d+)-(%d+)')
      first = ms .. '-' .. string.format('%.0f', tonumber(number) + 1)
    end
  end
end
local last = boots[#boots]
if not last or last[2] ~= ARGV[1] then
  boots[#boots + 1] = {first, ARGV[1]}
end
while #boots > tonumber(ARGV[2]) do
  table.remove(boots, 1)
end
redis.call('HSET', KEYS[1], 'boots', cjson.encode(boots), unpack(ARGV, 3))
return #boots
