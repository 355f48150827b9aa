#!lua flags=allow-oom
-- Take old entries out of a stream: what every group has acknowledged, or, where told so, also what is unread.
-- KEYS: stream, topic of losses
-- ARGV: entries to keep, most to take out in this call, reason ('': nobody waits for any of it, no report), how,
--       number of field items, the items of the report without its data, the groups to ignore
-- How: 'retain' takes what no group waits for (beside those to ignore) and reports what one of these had not read;
--      'history' takes the same and always reports; 'shed' takes what is oldest and always reports.
-- Returns the number taken out, and the first and last id of it where a report was written.
-- The last id is known exactly without reading all of them: whole nodes go first, then one entry that is looked at.
local stream, keep, most, reason = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local shed, items = ARGV[4] == 'shed', tonumber(ARGV[5])
local ignored = {}
for at = 6 + items, #ARGV do ignored[ARGV[at]] = true end

local function below(a, b)
  local a_ms, a_n = string.match(a, '(%d+)-(%d+)')
  local b_ms, b_n = string.match(b, '(%d+)-(%d+)')
  a_ms, b_ms = tonumber(a_ms), tonumber(b_ms)
  return a_ms < b_ms or (a_ms == b_ms and tonumber(a_n) < tonumber(b_n))
end

local length = redis.call('XLEN', stream)
local count = math.min(length - keep, most)
if count < 1 then
  return {0}
end
local bound, readers = nil, {}
for _, row in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  local info = {}
  for at = 1, #row, 2 do info[row[at]] = row[at + 1] end
  local reader = {name = info['name'], read = info['last-delivered-id']}
  if info['pending'] > 0 then
    reader.waits = redis.call('XPENDING', stream, reader.name)[2]
  end
  local safe = reader.read
  if reader.waits and below(reader.waits, safe) then safe = reader.waits end
  if not shed and not ignored[reader.name] and (not bound or below(safe, bound)) then bound = safe end
  readers[#readers + 1] = reader
end

local head = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
if bound and not below(head[1], bound) then
  return {0}
end
local newest = bound and redis.call('XREVRANGE', stream, '(' .. bound, '-', 'COUNT', 1)[1]
local report = reason ~= ''
local taken, last = 0, nil
if report then count = count - 1 end
if count > 0 then
  if shed then
    taken = redis.call('XTRIM', stream, 'MAXLEN', length - count)
  else
    taken = redis.call('XTRIM', stream, 'MINID', '~', bound or '18446744073709551615-0', 'LIMIT', count)
  end
end
if not report or (taken == 0 and not shed) then
  return {taken}
end
local next_one = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
if next_one and (not bound or below(next_one[1], bound)) then
  last = next_one[1]
  taken = taken + redis.call('XDEL', stream, last)
else
  last = newest[1]
end

local unread = {}
for _, reader in ipairs(readers) do
  if below(reader.read, last) or (reader.waits and not below(last, reader.waits)) then
    unread[#unread + 1] = reader.name
  end
end
if ARGV[4] == 'retain' and #unread == 0 then
  return {taken}
end
local loss = {stream = stream, first = head[1], last = last, count = taken, reason = reason}
if #unread > 0 then loss.unread_by = unread end
redis.call('XADD', KEYS[2], '*', 'data', cjson.encode(loss), unpack(ARGV, 6, 5 + items))
return {taken, head[1], last}
