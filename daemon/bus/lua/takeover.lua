#!lua flags=allow-oom
-- Fence a dead consumer and take a part of its work.
-- KEYS: inbox stream, fenced consumers, current id window, previous id window
-- ARGV: group, dead consumer, successor, at most so many entries
-- Returns for each entry: stream id, attempts begun so far, the fields, what the window knows of its message;
-- an entry that was trimmed away comes without fields. The consumer is deleted once it holds nothing.
-- The delivery count is kept as it is: it counts attempts that began, not how often an entry changed hands.
local stream, group, dead, most = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[4])
redis.call('HSET', KEYS[2], dead, 1)
local taken = {}
if most > 0 then
  for _, held in ipairs(redis.call('XPENDING', stream, group, '-', '+', most, dead)) do
    local claimed = redis.call('XCLAIM', stream, group, ARGV[3], 0, held[1], 'RETRYCOUNT', held[4])
    local fields, known = {}, ''
    if claimed[1] then
      fields = claimed[1][2]
      for at = 1, #fields, 2 do
        if fields[at] == 'id' then
          known = redis.call('HGET', KEYS[3], fields[at + 1]) or redis.call('HGET', KEYS[4], fields[at + 1]) or ''
          break
        end
      end
    else
      redis.call('XACK', stream, group, held[1])
    end
    taken[#taken + 1] = {held[1], held[4], fields, known}
  end
end
if #redis.call('XPENDING', stream, group, '-', '+', 1, dead) == 0 then
  redis.call('XGROUP', 'DELCONSUMER', stream, group, dead)
end
return taken
