#!lua flags=allow-oom
-- Mark an entry as being processed, if this consumer still owns it. Work that must not run twice runs only after this.
-- KEYS: inbox stream, current id window, fenced consumers
-- ARGV: group, consumer, stream id, message id, outcome (state letter, stream id, claim), number of this attempt
-- Returns 1 when the work may begin, 0 when the entry is not ours any more, -1 when this consumer is fenced.
if redis.call('HEXISTS', KEYS[3], ARGV[2]) == 1 then
  return -1
end
local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1)
if #pending == 0 or pending[1][2] ~= ARGV[2] then
  return 0
end
redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[3], 'RETRYCOUNT', ARGV[6], 'JUSTID')
redis.call('HSET', KEYS[2], ARGV[4], ARGV[5])
return 1
