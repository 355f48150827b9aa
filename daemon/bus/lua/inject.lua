#!lua
-- Append recorded entries under their own ids, and let the id window follow what they say.
-- KEYS: current id window, then the streams
-- ARGV: number of entries, then for each: index of its stream in KEYS, its id, what to do, message id, text, number of field
--       items, the items
-- What to do: plain; inbox (the window learns the message; text: its claim); a state letter (a final reply, which settles the
--       message of that id).
-- Returns the number of entries appended.
local at, letters = 2, {c = true, f = true, x = true}
for entry = 1, tonumber(ARGV[1]) do
  local stream, id, what, message = KEYS[tonumber(ARGV[at])], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local last = at + 5 + tonumber(ARGV[at + 5])
  redis.call('XADD', stream, id, unpack(ARGV, at + 6, last))
  if what == 'inbox' then
    redis.call('HSET', KEYS[1], message, 'q' .. id .. ARGV[at + 4])
  elseif letters[what] then
    local known = redis.call('HGET', KEYS[1], message)
    local open = known and string.match(known, '^[qp]([%d-]+|[^|]*|[^|]*|[^|]*)')
    if open then
      redis.call('HSET', KEYS[1], message, what .. open .. '|' .. id)
    end
  end
  at = last + 1
end
return tonumber(ARGV[1])
