"""The fresh bus that history is written to: an embedded server of its own on an empty data directory."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from petalbus.daemon.bus.connection import Connection, ServerError, open_connection
from petalbus.daemon.bus.envelope import claim_of
from petalbus.daemon.bus.keys import Keys
from petalbus.daemon.bus.scripts import load
from petalbus.daemon.bus.url import parse
from petalbus.daemon.paths import DataPaths
from petalbus.daemon.replay.errors import ReplayError, ReplayRefused
from petalbus.daemon.replay.history import Recorded
from petalbus.daemon.replay.source import PATIENCE, Source
from petalbus.daemon.server.discover import announce, discover, withdraw
from petalbus.daemon.server.embedded import EmbeddedServer
from petalbus.daemon.server.errors import DataDirectoryInUse, NoRunningBus
from petalbus.daemon.server.lock import is_locked
from petalbus.daemon.services.janitor import boot_keys
from petalbus.daemon.services.streams import Kind
from petalbus.schemas.compact import is_compact
from petalbus.schemas.vocabulary import ReplyKind

BATCH: Final = 64
BATCH_BYTES: Final = 256 * 1024
IN_FLIGHT: Final = 8
"""Script calls under way at a time: the server always has work, and memory stays bounded."""

MOST_ITEMS: Final = 1000
"""Items of one entry that a script call takes; a stranger one goes by a command of its own."""

_STATES: Final = {ReplyKind.RESULT: "c", ReplyKind.ERROR: "f", ReplyKind.CANCELLED: "x"}


@asynccontextmanager
async def open_target(into: Path, *, memory_mb: int) -> AsyncIterator[Target]:
    """Start a server for a fresh bus on ``into``; stopped in order at the end.

    Raises ReplayRefused when a bus runs on it or it holds records, and what the embedded server's start raises.
    """
    refuse_running(into)
    server = EmbeddedServer(into, memory_mb=memory_mb)
    try:
        await server.start()
    except DataDirectoryInUse as error:
        raise _refused(into, "a bus runs there") from error
    try:
        address = parse(server.url)
        connection = await open_connection(address, timeout=5.0, patience=PATIENCE)
        try:
            if await connection.call("DBSIZE"):
                raise _refused(into, "it holds records already")
            await connection.call("SCRIPT", "LOAD", load("inject").text)
            try:
                yield Target(connection, server)
            finally:
                withdraw(server.paths)
        finally:
            connection.close()
            await connection.closed
    finally:
        await server.stop()


def refuse_running(into: Path) -> None:
    """Raise ReplayRefused when a bus, or the server of one whose daemon was killed, runs on a directory."""
    paths = DataPaths.of(into)
    with contextlib.suppress(NoRunningBus):
        running = discover(into)
        raise _refused(into, f"a bus runs there (process {running.daemon_pid})")
    if is_locked(paths.server_lock):
        raise _refused(into, "the server of a bus whose daemon was killed still runs there")


def _refused(into: Path, why: str) -> ReplayRefused:
    return ReplayRefused(f"history is not replayed into {into}: {why}; name an empty directory with --into DIR")


class Target:
    """Writes recorded entries under their own ids, in order, many under way at a time."""

    def __init__(self, connection: Connection, server: EmbeddedServer) -> None:
        self.url = server.url
        self.counts: Counter[str] = Counter()
        self.memory_mb: int | None = None
        """Another memory ceiling than the server was started with."""

        self._connection = connection
        self._server = server
        self._keys = Keys()
        self._sha = load("inject").sha
        self._batch: list[bytes | str | int] = []
        self._streams: dict[str, int] = {}
        self._count = 0
        self._size = 0
        self._under_way: deque[asyncio.Future[Any]] = deque()
        self._forms: set[str] = set()

    async def prepare(self, source: Source) -> None:
        """Become the bus of that name, so that tools and applications find it; take over what belongs to it as a whole.

        Called with the first entry: a replay of nothing leaves nothing behind.
        """
        self._keys = source.keys
        if self.memory_mb is not None:
            await self._connection.call("CONFIG", "SET", "maxmemory", self.memory_mb << 20)
        for key in boot_keys(self._keys):
            flat = await source.call("HGETALL", key)
            if flat:
                await self._connection.call("HSET", key, *flat)
        apps = await source.call("SMEMBERS", source.keys.apps)
        if apps:
            await self._connection.call("SADD", self._keys.apps, *apps)
        server = self._server
        announce(server.paths, url=server.url, bus=self._keys.bus, server_pid=server.pid)

    async def add(self, record: Recorded, source: Source) -> None:
        """Write one entry; returns when there is room for the next. Raises ReplayError."""
        key = record.stream.key
        self.counts[key] += 1
        if record.stream.kind is Kind.TOPIC and record.stream.name not in self._forms and is_compact(record.fields):
            self._forms.add(record.stream.name)
            await self._declare(record.stream.name, source)
        if len(record.fields) > MOST_ITEMS:
            self._send_batch()
            self._under_way.append(self._connection.call("XADD", key, record.entry, *record.fields))
        else:
            what, message, claim = _meaning(record)
            number = self._streams.setdefault(key, len(self._streams) + 2)
            self._batch += (number, record.entry, what, message, claim, len(record.fields), *record.fields)
            self._count += 1
            self._size += sum(map(len, record.fields))
            if self._count >= BATCH or self._size >= BATCH_BYTES:
                self._send_batch()
        while len(self._under_way) > IN_FLIGHT:
            await self._confirm()

    async def flush(self) -> None:
        """Wait until everything so far is stored. Raises ReplayError."""
        self._send_batch()
        while self._under_way:
            await self._confirm()

    def _send_batch(self) -> None:
        if not self._count:
            return
        keys = [self._keys.ids, *self._streams]
        call = ("EVALSHA", self._sha, len(keys), *keys, self._count, *self._batch)
        self._under_way.append(self._connection.call(*call))
        self._batch, self._streams, self._count, self._size = [], {}, 0, 0

    async def _confirm(self) -> None:
        try:
            await self._under_way.popleft()
        except ServerError as error:
            if error.prefix == "OOM":
                raise ReplayError("the fresh bus has no memory left: replay less of it, or give it more") from error
            raise ReplayError(f"the fresh bus refused an entry: {error}") from error

    async def _declare(self, topic: str, source: Source) -> None:
        """What is constant in a compact topic lies beside it, and goes first."""
        flat = await source.call("HGETALL", source.keys.form(topic))
        if flat:
            await self._connection.call("HSET", self._keys.form(topic), *flat)


def _meaning(record: Recorded) -> tuple[str, bytes, bytes]:
    """What an entry means to the id window: what to do, message id, claim."""
    if record.stream.kind not in (Kind.INBOX, Kind.REPLIES):
        return "plain", b"", b""
    given = dict(zip(record.fields[::2], record.fields[1::2], strict=False))
    if record.stream.kind is Kind.INBOX and b"id" in given:
        source = given.get(b"source", b"?").decode("utf-8", "replace")
        return "inbox", given[b"id"], claim_of(record.stream.priority, record.stream.name, source)
    kind = given.get(b"kind", b"result").decode("ascii", "replace")
    state = _STATES.get(ReplyKind(kind)) if kind in set(ReplyKind) else None
    if state is None or b"reply_to" not in given:
        return "plain", b"", b""
    return state, given[b"reply_to"], b""
