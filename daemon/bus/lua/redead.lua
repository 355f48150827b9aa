-- Replace a dead letter by an edited one, once.
-- KEYS: dead letter stream.  ARGV: its stream id, the fields. Returns the new stream id, or '' when it is not there any more.
if redis.call('XDEL', KEYS[1], ARGV[1]) == 0 then
  return ''
end
return redis.call('XADD', KEYS[1], '*', unpack(ARGV, 2))
