"""Names on the bus: the app that writes to the cloud's tables, the types that it takes, and what is kept beside."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from petalbus.daemon.bus.keys import Keys

APP: Final = "database"
WRITE: Final = "database.write"
"""Write an item: table, key {name: value}, operation, item; optionally machine, seq, condition, typed.
See ``Write.of``."""

STATUS: Final = "database.status"
RETRY: Final = "database.retry"
"""Try a parked change of the local database again: ``seq``, or ``all``."""

DROP: Final = "database.drop"
"""Forget a parked change of the local database: ``seq``."""


def number_key(keys: Keys) -> str:
    """Where the vehicle's last number is."""
    return f"{keys.prefix}database:number"


def numbers_key(keys: Keys) -> str:
    """The hash of numbers by record: of those that had their turn and have not ended, and of dead letters."""
    return f"{keys.prefix}database:numbers"


def tries_field(record: str) -> str:
    """Beside a record's number: how often the cloud could not serve it."""
    return f"{record} tries"


def waiting_key(keys: Keys) -> str:
    """The hash of bytes by record: of what waits. Its field BYTES has their sum."""
    return f"{keys.prefix}database:waiting"


def order_key(table: str, name: str, value: str) -> str:
    """The bus's ordering key of an item: writes of one item are done one after the other."""
    return "cloud-" + hashlib.blake2b(f"{table}\0{name}\0{value}".encode(), digest_size=16).hexdigest()


def away_key(keys: Keys) -> str:
    """Why the cloud cannot be used now; there is none while it can: then a sender need not wait to know it."""
    return f"{keys.prefix}database:away"


BYTES: Final = " bytes"
"""A record's id has no blank."""

TAKE_ROOM: Final = """
local waits = redis.call('GET', KEYS[2]) or ''
local served = redis.call('EXISTS', KEYS[3])
local sum = tonumber(redis.call('HGET', KEYS[1], ' bytes') or 0)
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then
  if sum + tonumber(ARGV[2]) > tonumber(ARGV[3]) then return {0, waits, served, sum} end
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
  redis.call('HINCRBY', KEYS[1], ' bytes', ARGV[2])
end
return {1, waits, served, sum}
"""
"""Before a write is stored. KEYS: ``waiting_key``, ``away_key``, the handler's presence. ARGV: the record's id, its
bytes, the most that may wait. Returns whether there is room, why the cloud is away, whether there was ever a handler,
the bytes that waited before."""

GIVE_ROOM: Final = """#!lua flags=allow-oom
local size = redis.call('HGET', KEYS[1], ARGV[1])
if size then
  redis.call('HDEL', KEYS[1], ARGV[1])
  redis.call('HINCRBY', KEYS[1], ' bytes', -size)
end
return 1
"""
"""A write was not stored. KEYS: ``waiting_key``. ARGV: the record's id."""
