-- Append records to one stream, each id once.
-- KEYS: stream, current id window, previous id window
-- ARGV: ids a window may hold and entries the stream may hold (0 and 0: not checked this time), number of records,
--       then for each record: id, claim ("|priority|recipient|source"), number of field items, the items
-- Returns one string a record: the new stream id, what the window knows of the first one (begins with its state letter),
-- or '!' when the stream is full.
-- The field ' before' of the current window (no message id has a space) says that there is a previous one: mostly not.
local stream, current, previous = KEYS[1], KEYS[2], KEYS[3]
local full = false
if ARGV[2] ~= '0' then
  full = redis.call('XLEN', stream) >= tonumber(ARGV[2])
  if redis.call('HLEN', current) >= tonumber(ARGV[1]) then
    redis.call('UNLINK', previous)
    redis.call('RENAME', current, previous)
    redis.call('HSET', current, ' before', 1)
  end
end
local results, at, count = {}, 4, tonumber(ARGV[3])
local before = count > 1 and redis.call('HGET', current, ' before')
for record = 1, count do
  local id, last = ARGV[at], at + 2 + tonumber(ARGV[at + 2])
  local known
  if count > 1 then
    known = redis.call('HGET', current, id)
  else -- every call costs: one for both questions
    local seen = redis.call('HMGET', current, id, ' before')
    known, before = seen[1], seen[2]
  end
  if before and not known then
    known = redis.call('HGET', previous, id)
  end
  if not known and full then
    known = '!'
  elseif not known then
    known = redis.call('XADD', stream, '*', unpack(ARGV, at + 3, last))
    redis.call('HSET', current, id, 'q' .. known .. ARGV[at + 1])
  end
  results[record] = known
  at = last + 1
end
return results
