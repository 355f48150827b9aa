#!lua flags=allow-oom
-- Settle entries that a consumer owns: acknowledge, append what follows from them, remember the outcome. All or nothing.
-- (allow-oom: above the memory ceiling work must still be able to finish, or nothing could ever drain.)
-- KEYS: inbox stream, current id window, fenced consumers, then the streams that outputs go to
-- ARGV: group, consumer, number of entries,
--       then for each entry: stream id, message id, outcome (state letter, stream id, claim), number of outputs,
--       then for each output: index of its stream in KEYS, entries to keep there, number of field items, the items
-- Returns 'FENCED', or one integer an entry: 1 settled now, 0 it was not pending any more, -1 settled but an output
-- could not be appended.
local stream, current, group = KEYS[1], KEYS[2], ARGV[1]
if redis.call('HEXISTS', KEYS[3], ARGV[2]) == 1 then
  return 'FENCED'
end
local results, at = {}, 4
for entry = 1, tonumber(ARGV[3]) do
  local owned = redis.call('XACK', stream, group, ARGV[at])
  local id, outcome, outputs = ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
  local reply = ''
  at = at + 4
  for output = 1, outputs do
    local last = at + 2 + tonumber(ARGV[at + 2])
    if owned ~= 0 then
      local added = redis.pcall('XADD', KEYS[tonumber(ARGV[at])], 'MAXLEN', '~', ARGV[at + 1], '*', unpack(ARGV, at + 3, last))
      if type(added) == 'table' then
        owned = -1 -- a key of another type is in the way: settle the rest all the same, and say so
      else
        reply = added
      end
    end
    at = last + 1
  end
  if owned ~= 0 then
    redis.call('HSET', current, id, outcome .. '|' .. reply)
  end
  results[entry] = owned
end
return results
