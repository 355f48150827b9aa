#!lua
-- Publish a message on a channel: its record, and the message itself for those who only listen to channels.
-- KEYS: the topic of channel messages, the hash that a bridge describes itself in
-- ARGV: channel, channel of marks, channel that only bridges listen to, the message, then the record's field items
-- Returns the record's stream id, how many subscribers the message had, how many bridges there are, and their patterns.
-- The mark comes right before the message on every connection: what follows it has a record already.
local entry = redis.call('XADD', KEYS[1], '*', unpack(ARGV, 5))
redis.call('PUBLISH', ARGV[2], ARGV[1])
local heard = redis.call('PUBLISH', ARGV[1], ARGV[4])
local bridges = redis.call('PUBSUB', 'NUMSUB', ARGV[3])[2]
return {entry, heard, bridges, redis.call('HGET', KEYS[2], 'patterns') or ''}
