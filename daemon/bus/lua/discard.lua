#!lua flags=allow-oom
-- Acknowledge entries of the ingest stream that are not adopted, and say so in the topic of losses, in one step.
-- KEYS: ingest stream, topic of losses
-- ARGV: group, number of entries, their ids, the fields of the report
-- Returns the number of entries discarded now; the report is written only when that is not 0.
local count = tonumber(ARGV[2])
local gone = redis.call('XACK', KEYS[1], ARGV[1], unpack(ARGV, 3, 2 + count))
if gone > 0 then
  redis.call('XADD', KEYS[2], '*', unpack(ARGV, 3 + count))
end
-- as in adopt: all below the oldest entry that still waits leaves the stream, or all that was ever delivered
local waiting = redis.call('XPENDING', KEYS[1], ARGV[1])
if waiting[1] > 0 then
  redis.call('XTRIM', KEYS[1], 'MINID', waiting[2])
else
  for _, row in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local info = {}
    for item = 1, #row, 2 do info[row[item]] = row[item + 1] end
    if info['name'] == ARGV[1] then
      local ms, n = string.match(info['last-delivered-id'], '(%d+)-(%d+)')
      redis.call('XTRIM', KEYS[1], 'MINID', ms .. '-' .. string.format('%.0f', tonumber(n) + 1))
    end
  end
end
return gone
