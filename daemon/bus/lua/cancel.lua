-- Cancel a message: at once when no consumer has it yet, else by asking the consumer that has it.
-- KEYS: inbox stream, current id window, reply stream, control stream
-- ARGV: group, stream id, message id, outcome (state letter, stream id, claim), entries to keep in the control stream,
--       entries to keep in the reply stream, the fields of the reply
-- Returns 'cancelled', 'requested', or 'gone' when the message is settled.
local delivered = false
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local info = {}
  for at = 1, #group, 2 do info[group[at]] = group[at + 1] end
  if info['name'] == ARGV[1] then
    local last_ms, last_n = string.match(info['last-delivered-id'], '(%d+)-(%d+)')
    local ms, n = string.match(ARGV[2], '(%d+)-(%d+)')
    ms, n, last_ms, last_n = tonumber(ms), tonumber(n), tonumber(last_ms), tonumber(last_n)
    delivered = ms < last_ms or (ms == last_ms and n <= last_n)
  end
end
if delivered then
  if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[2], ARGV[2], 1) == 0 then
    return 'gone'
  end
  redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[5], '*', 'cancel', ARGV[3])
  return 'requested'
end
if redis.call('XDEL', KEYS[1], ARGV[2]) == 0 then
  return 'gone'
end
local reply = redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[6], '*', unpack(ARGV, 7))
redis.call('HSET', KEYS[2], ARGV[3], ARGV[4] .. '|' .. reply)
return 'cancelled'
