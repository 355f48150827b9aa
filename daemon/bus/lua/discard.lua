#!lua flags=allow-oom
-- Acknowledge entries that are not kept, and say so in the topic of losses, in one step.
-- KEYS: stream, topic of losses
-- ARGV: group, number of entries, their ids, the fields of the report
-- Returns the number of entries discarded now; the report is written only when that is not 0.
local count = tonumber(ARGV[2])
local gone = redis.call('XACK', KEYS[1], ARGV[1], unpack(ARGV, 3, 2 + count))
if gone > 0 then
  redis.call('XADD', KEYS[2], '*', unpack(ARGV, 3 + count))
end
return gone
