"""Names on the bus: the app that writes to the cloud's tables, and the types that it takes."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from petalbus.daemon.bus.keys import Keys

APP: Final = "database"
WRITE: Final = "database.write"
"""Write an item: table, key {name: value}, operation, item; optionally seq, condition, typed. See ``Write.of``."""

STATUS: Final = "database.status"
RETRY: Final = "database.retry"
"""Try a parked change of the local database again: ``seq``."""

DROP: Final = "database.drop"
"""Forget a parked change of the local database: ``seq``."""

NEXT_NUMBER: Final = """
local now = redis.call('TIME')
local number = now[1] * 1000000 + now[2]
local last = tonumber(redis.call('GET', KEYS[1]) or 0)
if number <= last then number = last + 1 end
redis.call('SET', KEYS[1], string.format('%.0f', number))
return {string.format('%.0f', number), redis.call('GET', KEYS[2]) or ''}
"""
"""The next number of this vehicle (microseconds of the wall clock, and never less than before), and ``away_key``."""


def number_key(keys: Keys) -> str:
    """Where the vehicle's last number is."""
    return f"{keys.prefix}database:number"


def order_key(table: str, name: str, value: str) -> str:
    """The bus's ordering key of an item: writes of one item are done one after the other."""
    return "cloud-" + hashlib.blake2b(f"{table}\0{name}\0{value}".encode(), digest_size=16).hexdigest()


def away_key(keys: Keys) -> str:
    """Why the cloud cannot be used now; there is none while it can: then a sender need not wait to know it."""
    return f"{keys.prefix}database:away"
