"""The numbers of this vehicle's writes: each larger than all before, and drawn by one process alone: the handler.

A write gets its number at its first turn at its item, also while the cloud is away: so it is on the disk before
the write is done, and a power cut does not make it a new one. It keeps the number: it is remembered by the
record's id, until the record has ended in another way than as a dead letter. The last number is on the bus's
server; a power cut may take its last seconds, although the cloud has writes with those numbers. So after a restart
of the server it is raised. A number just drawn is above all of ours: where the cloud has a higher one, ours were
lost, and the write gets a new one. A number that was remembered may be older than a later write: it gets no new
one.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from petalbus.daemon.bus.connection import ServerError
from petalbus.daemon.bus.errors import BusError, NotOpen
from petalbus.handlers.database import words
from petalbus.handlers.database.errors import Refused

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus

AHEAD: Final = 86_400_000_000
"""How far a record's own number may be ahead of ours: a day, in microseconds."""

RAISED: Final = 60_000_000
"""By how much the last number is raised after a restart of the server: a minute."""

MOST: Final = 2**62
_PAUSE_S: Final = 0.5

# Numbers are texts in these scripts: they have more digits than Lua's own numbers keep.
_LAST: Final = """#!lua flags=allow-oom
local function over(a, b) return #a > #b or (#a == #b and a > b) end
local last = redis.call('GET', KEYS[1]) or '0'
if not string.match(last, '^[1-9]%d*$') then last = '0' end
local function next_number(floor)
  if over(floor, last) then
    redis.call('SET', KEYS[1], floor)
    return floor
  end
  redis.call('INCR', KEYS[1])
  return redis.call('GET', KEYS[1])
end
"""
# KEYS: last number, numbers by record. ARGV: record's id or '', lowest number, the record's own number or '', how far
# that one may be ahead. Returns the number ('': too far ahead), and whether it is new.
_DRAW: Final = f"""{_LAST}
local known = ARGV[1] ~= '' and redis.call('HGET', KEYS[2], ARGV[1])
if known then return {{known, 0}} end
local number = ARGV[3]
if number == '' then
  number = next_number(ARGV[2])
else
  local now = redis.call('TIME')
  local most = math.max(tonumber(last), now[1] * 1000000 + now[2]) + tonumber(ARGV[4])
  if tonumber(number) > most then return {{'', 0}} end
  if over(number, last) then redis.call('SET', KEYS[1], number) end
end
if ARGV[1] ~= '' then redis.call('HSET', KEYS[2], ARGV[1], number) end
return {{number, 1}}
"""
# ARGV: record's id or '', the number in the cloud. Returns a new number, above that one, and above the last one:
# others may have raised it meanwhile.
_RECOVER: Final = f"""{_LAST}
if over(ARGV[2], last) then redis.call('SET', KEYS[1], ARGV[2]) end
redis.call('INCR', KEYS[1])
local number = redis.call('GET', KEYS[1])
if ARGV[1] ~= '' then redis.call('HSET', KEYS[2], ARGV[1], number) end
return number
"""
# KEYS: last number, mark of the server's run. ARGV: the run, by how much. Once for each run.
_RAISE: Final = f"""{_LAST}
if ARGV[1] == '' or redis.call('GET', KEYS[2]) ~= ARGV[1] then
  if last ~= '0' then redis.call('INCRBY', KEYS[1], ARGV[2]) end
  redis.call('SET', KEYS[2], ARGV[1])
end
return 1
"""

log = logging.getLogger(__name__)


class Drawn(NamedTuple):
    """A number. ``fresh``: drawn just now, so larger than all of ours; neither remembered nor brought along."""

    number: int
    fresh: bool


class Source(Protocol):
    """Where one write's number comes from, and where it is remembered."""

    async def draw(self) -> Drawn:
        """Its number; the same at each call. Raises Refused for one that cannot be."""

    async def again(self, stored: int) -> int | None:
        """Ours were lost: the cloud has ``stored`` of this machine. A new number; None if ``stored`` can be none."""


class Numbers:
    """The vehicle's numbers. A server that cannot be reached is waited for."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._keys = (words.number_key(bus.keys), words.numbers_key(bus.keys))

    async def start(self) -> None:
        """Raise the last number if the server was started since we did so last."""
        try:
            told = (await self._bus.ask("INFO", "server")).decode("utf-8", "replace")
        except ServerError:  # it does not tell this user
            told = ""
        found = re.search(r"^run_id:(\w+)", told, re.MULTILINE)
        last, run = self._keys[0], f"{self._keys[0]}:run"
        await self.ask("EVAL", _RAISE, 2, last, run, found[1] if found else "", RAISED)

    async def draw(self, record: str, lowest: int, own: int | None = None) -> Drawn:
        """The number of a record ('': of something that keeps it itself), ``lowest`` at least. Raises Refused.

        ``own``: the number that the record itself has.
        """
        asked = "" if own is None else own
        number, fresh = await self.ask("EVAL", _DRAW, 2, *self._keys, record, max(1, lowest), asked, AHEAD)
        if not number:
            raise Refused(f"seq {own} is more than a day ahead of this vehicle's numbers and of its clock")
        return Drawn(int(number), bool(fresh) and own is None)  # its own may have been used under another id

    async def recover(self, record: str, stored: int) -> int | None:
        """See ``Source.again``."""
        if not 0 < stored < MOST:
            return None
        number = await self.ask("EVAL", _RECOVER, 2, *self._keys, record, stored)
        log.warning("the last numbers of this vehicle's writes were lost: the cloud has %d, going on with it", stored)
        return int(number)

    async def tried(self, record: str) -> int:
        """Count an attempt that the cloud could not serve; how many there were, over restarts."""
        return int(await self.ask("HINCRBY", self._keys[1], words.tries_field(record), 1))

    async def ask(self, *args: str | int) -> Any:
        """One command that may run twice; it is tried until the server answers."""
        while True:
            try:
                return await self._bus.ask(*args)
            except NotOpen:
                raise
            except (BusError, ServerError) as error:
                log.warning("the numbers of writes cannot be had now: %s", error)
                await asyncio.sleep(_PAUSE_S)


class RecordNumber:
    """The number of a record. ``lowest``: the microseconds at which it was stored; ``own``: the one it brings along."""

    def __init__(self, numbers: Numbers, record: str, lowest: int, own: int | None) -> None:
        self._numbers = numbers
        self._record = record
        self._lowest = lowest
        self._own = own

    async def draw(self) -> Drawn:
        """See Source."""
        return await self._numbers.draw(self._record, self._lowest, self._own)

    async def again(self, stored: int) -> int | None:
        """See Source."""
        return await self._numbers.recover(self._record, stored)
