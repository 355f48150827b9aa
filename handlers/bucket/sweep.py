"""Gives up what uploads have left in the store: parts that nobody will complete cost money and are seen by nobody."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Container
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from petalbus.handlers.bucket.errors import BucketError, Denied, Unsupported
from petalbus.handlers.bucket.notes import Note, Notes
from petalbus.schemas.vocabulary import Status

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.handlers.bucket.store import Store

OLD: Final = timedelta(days=2)
"""An upload of this machine that nothing is noted of is given up after so long. It may be of another installation."""

_SETTLED: Final = (Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.TIMEOUT)

log = logging.getLogger(__name__)


class Sweeper:
    """``live``: ids of the uploads under way. ``due`` is set when there is something to do."""

    def __init__(
        self,
        bus: Bus,
        store: Store,
        notes: Notes,
        *,
        live: Container[str],
        machine: Callable[[], str | None],
        prefix: str,
    ) -> None:
        self.due = asyncio.Event()
        self.swept = 0
        self.store_answers = False
        """Nothing is asked of a store for this alone before it has taken something."""
        self.finished: set[str] = set()
        """Stored, and perhaps not settled yet."""
        self._bus = bus
        self._store = store
        self._notes = notes
        self._live = live
        self._machine = machine
        self._prefix = prefix
        self._looked = False

    async def sweep(self) -> None:
        """One look. Raises BusError, ServerError, BucketError."""
        noted = await self._notes.all()
        self.finished &= noted.keys()
        for name, note in noted.items():
            if name in self._live:
                continue
            if note.over or await self._bus.status(name) in _SETTLED:
                await self._give_up(name, note, {one.upload for one in noted.values() if one is not note})
            elif name in self.finished:
                self.due.set()  # its end is not stored yet
        if self.store_answers and not self._looked:
            await self._look_for_strangers({note.upload for note in noted.values()})
            self._looked = True

    async def _give_up(self, name: str, note: Note, others: set[str | None]) -> None:
        try:
            if note.upload is not None and note.key is not None and name not in self.finished:
                await self._store.abort(note.key, note.upload)
                self.swept += 1
            if note.strays and note.key is not None:
                await self._give_up_strays(note.key, others)
        except BucketError as error:
            if error.passes:
                raise
            log.warning("the parts of %s stay in the store: %s", note.key, error)
        if name not in self._live:
            await self._notes.forget(name)
            self.finished.discard(name)

    async def _give_up_strays(self, key: str, others: set[str | None]) -> None:
        """Uploads of a key that the store has begun while its answer was lost."""
        for one in await self._store.begun(key):
            if one.key == key and one.upload not in others:
                await self._store.abort(key, one.upload)
                self.swept += 1

    async def _look_for_strangers(self, known: set[str | None]) -> None:
        """Old uploads of this machine that nothing is noted of: of a lost data directory, for example."""
        machine = self._machine()
        if machine is None:
            return
        before = datetime.now(UTC) - OLD
        for prefix in (f"{machine}/", f"{self._prefix.strip('/')}/{machine}/"):
            try:
                for one in await self._store.begun(prefix):
                    if one.upload not in known and one.since < before and one.key.startswith(prefix):
                        log.info("an old unfinished upload of %s is given up", one.key)
                        await self._store.abort(one.key, one.upload)
                        self.swept += 1
            except (Denied, Unsupported):
                return  # a right of its own, which we have not been given
            except BucketError as error:
                log.info("old uploads cannot be looked for: %s", error)
                return
