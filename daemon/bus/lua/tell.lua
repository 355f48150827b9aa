#!lua flags=allow-oom
-- Append a reply that is not the last one, if this consumer still owns the work.
-- KEYS: inbox stream, reply stream, fenced consumers
-- ARGV: group, consumer, stream id, entries to keep, the fields
-- Returns the reply's stream id, '' when the entry is not ours any more, or 'FENCED'.
if redis.call('HEXISTS', KEYS[3], ARGV[2]) == 1 then
  return 'FENCED'
end
local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1)
if #pending == 0 or pending[1][2] ~= ARGV[2] then
  return ''
end
return redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[4], '*', unpack(ARGV, 5))
