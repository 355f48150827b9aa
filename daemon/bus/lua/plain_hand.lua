-- Put a message into the sorted set of an application that lives on plain keys, once.
-- KEYS: the application's queue, what was put there lately (it shares the queue's slot)
-- ARGV: name of this handing over, the message as JSON, priority 1-4, entries that the queue may hold, names to remember
-- Returns 1 when it was put there now, 0 when it had been before, -1 when there is no room.
--
-- The application takes with ZPOPMAX. So the highest score must be the most urgent message, and within one priority the
-- oldest: a priority's band begins at priority * 10^9, its first message is put 499,999,999 above, each further one just
-- below the lowest that waits. The first digit of a score is the priority. No clock is in it: where a score grows with
-- the time, the newest of a priority comes first, and after 1000 s a LOW one stands above a CRITICAL one. What other
-- programs put there with such a score (priority * 1000 + seconds since 1970) comes after our NORMAL and before our LOW.
local queue, lately = KEYS[1], KEYS[2]
if redis.call('ZSCORE', lately, ARGV[1]) then
  return 0
end
local bottom = tonumber(ARGV[3]) * 1000000000
local top = bottom + 499999999
local lowest = redis.call('ZRANGEBYSCORE', queue, bottom, top, 'WITHSCORES', 'LIMIT', 0, 1)
local score = lowest[2] and tonumber(lowest[2]) - 1 or top
if score < bottom or redis.call('ZCARD', queue) >= tonumber(ARGV[4]) then
  return -1
end
redis.call('ZADD', queue, string.format('%.0f', score), ARGV[2])
local newest = redis.call('ZRANGE', lately, -1, -1, 'WITHSCORES')
redis.call('ZADD', lately, newest[2] and tonumber(newest[2]) + 1 or 1, ARGV[1])
redis.call('ZREMRANGEBYRANK', lately, 0, -1 - tonumber(ARGV[5]))
return 1
