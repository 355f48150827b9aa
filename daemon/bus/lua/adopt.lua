#!lua
-- Adopt entries of the ingest stream: each is appended where it belongs and acknowledged in one step, or left as it is.
-- KEYS: ingest stream, current id window, previous one, current short window, previous one, then streams named by index
-- ARGV: group, ids a window may hold, ids a short window may hold, entries an inbox may hold, replies to keep,
--       group of the inboxes, number of entries, then for each entry:
--       its id, what to do, index of the target, message id, claim, state that follows for the message answered,
--       id of that message, index of the first of the answering app's four inboxes, number of field items, the items
-- What to do: inbox, topic, reply, dead (letter), also (append this if the entry before was settled by this call).
-- Returns one string an entry: the new stream id; for a repetition (settled) what the window knows, or '=' and the first
-- one's stream id; '' when it was not pending any more; or '!' and why it cannot be adopted ('!conflict', '!full',
-- '!settled', '!stranger', '!refused'): it stays pending.
local ingest, group = KEYS[1], ARGV[1]

local function rotate(current, previous, most)
  if redis.call('HLEN', current) >= tonumber(most) then
    redis.call('UNLINK', previous)
    redis.call('RENAME', current, previous)
    redis.call('HSET', current, ' before', 1) -- append looks into the previous window only where this says that there is one
  end
end

local function find(current, previous, id)
  return redis.call('HGET', current, id) or redis.call('HGET', previous, id)
end

-- a stream that is none (somebody has made another kind of key there) must not hold up the entries of others
local function append(stream, keep, first, last)
  local answer
  if keep then
    answer = redis.pcall('XADD', stream, 'MAXLEN', '~', keep, '*', unpack(ARGV, first, last))
  else
    answer = redis.pcall('XADD', stream, '*', unpack(ARGV, first, last))
  end
  return type(answer) == 'table' and '!refused ' .. answer['err'] or answer
end

rotate(KEYS[2], KEYS[3], ARGV[2])
rotate(KEYS[4], KEYS[5], ARGV[3])
local results, at, settled = {}, 8, false
for number = 1, tonumber(ARGV[7]) do
  local entry, what, target, id, claim = ARGV[at], ARGV[at + 1], KEYS[tonumber(ARGV[at + 2])], ARGV[at + 3], ARGV[at + 4]
  local state, asked, inboxes = ARGV[at + 5], ARGV[at + 6], tonumber(ARGV[at + 7])
  local first, last = at + 9, at + 8 + tonumber(ARGV[at + 8])
  local known, result, original = false, nil, nil
  if what == 'inbox' then
    known = find(KEYS[2], KEYS[3], id)
    local claimed = known and string.match(known, '^%a[%d-]+(|[^|]*|[^|]*|[^|]*)')
    if known and claimed ~= claim then
      result = '!conflict ' .. known
    else
      local length = redis.pcall('XLEN', target)
      if not known and type(length) == 'number' and length >= tonumber(ARGV[4]) then result = '!full' end
    end
  elseif what == 'topic' then
    known = find(KEYS[4], KEYS[5], id)
  elseif what == 'reply' then
    known = find(KEYS[4], KEYS[5], id)
    local value = not known and find(KEYS[2], KEYS[3], asked)
    if value then
      original = {string.match(value, '^(%a)([%d-]+)|([^|]*)|([^|]*)|([^|]*)')}
      if not original[1] then
        original = nil
      elseif original[4] .. '|' .. original[5] ~= claim then
        result = '!stranger ' .. value
      elseif string.find('cftx', original[1], 1, true) then
        result = '!settled ' .. value
      end
    end
  end
  if what == 'also' then
    result = settled and append(target, ARGV[5], first, last) or ''
  elseif result then
    settled = false
  elseif #redis.call('XPENDING', ingest, group, entry, entry, 1) == 0 then
    settled, result = false, ''
  elseif known then
    settled, result = true, what == 'inbox' and known or '=' .. known
  else
    result = append(target, what == 'reply' and ARGV[5], first, last)
    settled = string.sub(result, 1, 1) ~= '!'
    if settled and what == 'inbox' then
      redis.call('HSET', KEYS[2], id, 'q' .. result .. claim)
    elseif settled and what ~= 'dead' then
      redis.call('HSET', KEYS[4], id, result)
    end
    if settled and original then
      local value = state .. original[2] .. '|' .. original[3] .. '|' .. original[4] .. '|' .. original[5]
      if state ~= 'p' then
        value = value .. '|' .. result
        local level = tonumber(original[3])
        if level then
          redis.pcall('XACK', KEYS[inboxes + level - 1], ARGV[6], original[2])
        end
      end
      redis.call('HSET', KEYS[2], asked, value)
    end
  end
  if settled and what ~= 'also' then
    redis.call('XACK', ingest, group, entry)
  end
  results[number] = result
  at = last + 1
end

-- what is adopted leaves the stream: all below the oldest entry that still waits, or all that was ever delivered
local waiting = redis.call('XPENDING', ingest, group)
if waiting[1] > 0 then
  redis.call('XTRIM', ingest, 'MINID', waiting[2])
else
  for _, row in ipairs(redis.call('XINFO', 'GROUPS', ingest)) do
    local info = {}
    for item = 1, #row, 2 do info[row[item]] = row[item + 1] end
    if info['name'] == group then
      local ms, n = string.match(info['last-delivered-id'], '(%d+)-(%d+)')
      redis.call('XTRIM', ingest, 'MINID', ms .. '-' .. string.format('%.0f', tonumber(n) + 1))
    end
  end
end
return results
