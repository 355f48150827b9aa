"""What is kept beside records (numbers, bytes that wait) goes when they have ended, and not before the bus knows it.

Who is killed between the two leaves it behind, and so does a record that never came here (cancelled, past its
deadline): that is looked for at the start, and now and then.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final

from petalbus.daemon.bus.connection import ServerError
from petalbus.daemon.bus.errors import BusError
from petalbus.handlers.database import words
from petalbus.handlers.database.older import first_unsettled

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus

MOST: Final = 20_000
"""Numbers that are kept of records that have not ended, and of dead letters."""

LOOK_S: Final = 600.0
_PAUSE_S: Final = 0.25
_MOST_PAUSE_S: Final = 60.0
"""Between two questions about those that were about to end and have not."""

_AT_ONCE: Final = 200
_PAGE: Final = 500
_FEW: Final = 50
"""Records, which may be large."""

# KEYS: numbers, bytes, current id window, the one before. ARGV: a record's id and 1 where its number stays; and so on.
# Returns the ids of those that have not ended.
_FORGET: Final = """#!lua flags=allow-oom
local left = {}
for at = 1, #ARGV, 2 do
  local id = ARGV[at]
  local known = redis.call('HGET', KEYS[3], id) or redis.call('HGET', KEYS[4], id) or 'c'
  if string.find('qpd', string.sub(known, 1, 1)) then
    left[#left + 1] = id
  else
    redis.call('HDEL', KEYS[1], id .. ' tries')
    if ARGV[at + 1] == '0' then redis.call('HDEL', KEYS[1], id) end
    local size = redis.call('HGET', KEYS[2], id)
    if size then
      redis.call('HDEL', KEYS[2], id)
      redis.call('HINCRBY', KEYS[2], ' bytes', -size)
    end
  end
end
return left
"""

log = logging.getLogger(__name__)


class Ended:
    """``note`` what has ended; ``run`` does the rest."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        keys = bus.keys
        self._numbers, self._bytes = words.numbers_key(keys), words.waiting_key(keys)
        self._windows = (keys.ids, keys.ids_before)
        self._over: dict[str, bool] = {}
        self._unknown: set[str] = set()
        self._news = asyncio.Event()

    def note(self, record: str, *, dead: bool) -> None:
        """A record is about to end. ``dead``: as a dead letter: its number stays, its tries begin anew."""
        self._over[record] = dead
        self._news.set()

    async def run(self) -> None:
        """Until cancelled."""
        looked, pause = float("-inf"), _PAUSE_S
        while True:
            pause = _PAUSE_S if self._news.is_set() else min(_MOST_PAUSE_S, pause * 2)
            self._news.clear()
            try:
                if time.monotonic() - looked > LOOK_S:
                    await self.look()
                    looked = time.monotonic()
                await self._forget()
            except (BusError, ServerError) as error:
                log.info("what is kept of ended writes cannot be forgotten now: %s", error)
                pause = _PAUSE_S
            await asyncio.sleep(_PAUSE_S)  # several end at a time
            try:
                async with asyncio.timeout(pause if self._over else LOOK_S):
                    await self._news.wait()
            except TimeoutError:
                continue

    async def look(self) -> None:
        """Forget what was left behind. Raises BusError, ServerError."""
        known = await self._fields(self._numbers)
        ended = await self._states([name for name in known if not name.endswith(" tries")], "ctxf")
        dead = await self._dead() if ended else set()
        self._over |= {name: name in dead for name in ended}
        waiting = [name for name in await self._fields(self._bytes) if name != words.BYTES]
        unknown = set(await self._states(waiting, ""))  # about to be stored, or its sender is gone: look twice
        never = unknown & self._unknown
        if never:
            never -= await self._unsettled()  # the windows forget what waits for days, too
        gone = await self._states(waiting, "ctxf") + sorted(never)
        self._over |= {name: True for name in gone if name not in self._over}
        self._unknown = unknown
        await self._cap({name: int(number) for name, number in known.items() if not name.endswith(" tries")})

    async def _forget(self) -> None:
        over = list(self._over.items())
        for start in range(0, len(over), _AT_ONCE):
            some = over[start : start + _AT_ONCE]
            told = [part for name, dead in some for part in (name, int(dead))]
            keys = (self._numbers, self._bytes, *self._windows)
            left = {one.decode() for one in await self._bus.ask("EVAL", _FORGET, len(keys), *keys, *told)}
            for name, dead in some:
                if name not in left and self._over.get(name) is dead:
                    self._over.pop(name)

    async def _cap(self, known: dict[str, int]) -> None:
        oldest = sorted(known, key=lambda name: known[name])[: max(0, len(known) - MOST)]
        for start in range(0, len(oldest), _AT_ONCE):
            some = oldest[start : start + _AT_ONCE]
            await self._bus.ask("HDEL", self._numbers, *some, *map(words.tries_field, some))
        if oldest:
            log.warning("more than %d numbers of writes were kept: %d old ones are forgotten", MOST, len(oldest))

    async def _fields(self, key: str) -> dict[str, bytes]:
        cursor = b"0"
        found: dict[str, bytes] = {}
        while True:
            cursor, flat = await self._bus.ask("HSCAN", key, cursor, "COUNT", _PAGE)
            found |= {name.decode(): value for name, value in zip(flat[::2], flat[1::2], strict=True)}
            if cursor == b"0":
                return found

    async def _states(self, records: list[str], wanted: str) -> list[str]:
        """Those of which the bus's id windows know such a state; with no states: those that they do not know."""
        found = []
        for start in range(0, len(records), _PAGE):
            some = records[start : start + _PAGE]
            now, before = [await self._bus.ask("HMGET", window, *some) for window in self._windows]
            for name, current, older in zip(some, now, before, strict=True):
                state = (current or older or b"")[:1].decode()
                if state in wanted if state and wanted else state == wanted:
                    found.append(name)
        return found

    async def _unsettled(self) -> set[str]:
        """Ids of the records in the inbox that have not ended, and of some that have."""
        found: set[str] = set()
        for stream in self._bus.keys.inboxes(words.APP).values():
            after = await first_unsettled(self._bus, stream)
            while after:
                rows = await self._bus.ask("XRANGE", stream, after, "+", "COUNT", _FEW)
                for _, fields in rows:
                    found |= {
                        value.decode("utf-8", "replace")
                        for name, value in zip(fields[::2], fields[1::2], strict=True)
                        if name == b"id"
                    }
                after = f"({rows[-1][0].decode()}" if len(rows) == _FEW else ""
        return found

    async def _dead(self) -> set[str]:
        """Ids of dead letters."""
        found: set[str] = set()
        after: str | None = None
        while True:
            letters = await self._bus.dead.list(words.APP, count=_PAGE, after=after)
            found |= {(letter.field(b"id") or b"").decode("utf-8", "replace") for letter in letters}
            if len(letters) < _PAGE:
                return found
            after = letters[-1].entry
