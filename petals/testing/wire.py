"""The wire between a petal's bus client and the server, which breaks as the faults of a test say.

Requests and answers are parsed, so that a cut comes between two answers and everybody knows which one was lost. Decided
upon is what carries work: reads that bring a record of the test, tell and commit of such a record, and what the petal
itself sends and publishes. Heartbeats and the setting up of connections are left alone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import hiredis

from petalbus.daemon.bus.scripts import all_scripts
from petalbus.petals.testing.faults import FaultRun
from petalbus.petals.testing.memory import encode

_WORK: Final = ("tell", "commit", "append")
"""Not ``begin``: whether a short handler is marked at all depends on how long it takes, and not on the seed."""

_PIECE: Final = 1 << 16
_MAX_WAITING: Final = 10_000


class Wire:
    """Listens on the unix socket ``path`` and forwards to ``target``. ``on_crash`` is called once, when it is cut off.

    One wire serves one life of a petal: after ``die`` it refuses everything, as the network of a dead process does.
    """

    def __init__(self, path: Path, target: Path, run: FaultRun, *, on_crash: Callable[[], None]) -> None:
        self.path = path
        self.dead = False
        self._target = target
        self._faults = run
        self._on_crash = on_crash
        self._scripts = {script.sha.encode(): script.name for script in all_scripts()}
        self._listening: asyncio.Server | None = None
        self._open: set[_Way] = set()

    async def start(self) -> None:
        """Listen for the petal's clients."""
        self._listening = await asyncio.start_unix_server(self._accept, self.path)

    async def stop(self) -> None:
        """Cut everything and listen no more."""
        self.dead = True
        if self._listening is not None:
            self._listening.close()
        for way in list(self._open):
            way.cut()
        while self._open:
            await asyncio.wait([way.ended for way in self._open])

    def die(self, subject: str, detail: str) -> None:
        """The petal has crashed: nothing of it reaches the server any more."""
        if self.dead:
            return
        self.dead = True
        self._faults.crashed(subject, detail)
        for way in list(self._open):
            way.cut()
        self._on_crash()

    def request(self, words: list[bytes]) -> bool:
        """A request goes up; False when it is the one before which the petal crashes."""
        if self._script(words) == "commit":
            for name in self._named(words):
                if self._faults.crash(name) == "after":
                    self.die(name, "after its handler had ended, before it was acknowledged")
                    return False
        return not self.dead

    def answer(self, words: list[bytes], answer: Any) -> tuple[bool, float]:
        """An answer comes down: is it lost, and by how much is it late?"""
        lost, late = False, 0.0
        for subject, detail in self._subjects(words, answer):
            lost = self._faults.drop(subject, f"the answer to {detail} was lost and the connection cut") or lost
            late += self._faults.delay(subject)
        if not lost and words[0] == b"XREADGROUP":
            for name in self._named(_entries(answer)):
                if self._faults.crash(name) == "before":
                    self.die(name, "after it was delivered, before its handler began")
                    return True, 0.0
        return lost, late

    def _subjects(self, words: list[bytes], answer: Any) -> Iterator[tuple[str, str]]:
        script = self._script(words)
        if script in _WORK:
            names = list(self._named(words))
            if names:
                yield from ((f"{script} {name}", f"{script} of {name}") for name in names)
            elif script == "append":
                yield f"send to {_place(words[3])}", f"a record sent to {_place(words[3])}"
        elif words[0] == b"XADD":
            yield f"publish to {_place(words[1])}", f"a record published to {_place(words[1])}"
        elif words[0] == b"XREADGROUP":
            names = [name for name in self._named(_entries(answer)) if self._faults.first(f"read {name}")]
            yield from ((f"read {name}", f"the read of {name}") for name in names)

    def _script(self, words: list[bytes]) -> str | None:
        return self._scripts.get(words[1]) if words[0] == b"EVALSHA" else None

    def _named(self, words: list[bytes]) -> Iterator[str]:
        """The records of the test that a request or an answer is about, each once."""
        names = self._faults.names
        yield from dict.fromkeys(names[word] for word in words if word in names)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.dead:
            writer.transport.abort()
            return
        try:
            upstream = await asyncio.open_unix_connection(str(self._target))
        except OSError:
            writer.transport.abort()  # the server is away: the client sees what it would see without a wire
            return
        way = _Way(self, (reader, writer), upstream)
        self._open.add(way)
        try:
            await way.run()
        finally:
            self._open.discard(way)


class _Way:
    """One connection through the wire."""

    def __init__(
        self,
        wire: Wire,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wire = wire
        self._from_client, self._to_client = client
        self._from_server, self._to_server = server
        self._asked: deque[list[bytes]] = deque()

    async def run(self) -> None:
        """Until one side ends, or it is cut."""
        ways = [
            asyncio.create_task(self._upwards(), name="wire.upwards"),
            asyncio.create_task(self._downwards(), name="wire.downwards"),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.cut()
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self.ended.set_result(None)

    def cut(self) -> None:
        """Abort both sides, without a farewell."""
        self._to_client.transport.abort()
        self._to_server.transport.abort()

    async def _upwards(self) -> None:
        reader = hiredis.Reader()
        while data := await self._from_client.read(_PIECE):
            reader.feed(data)
            while isinstance(words := reader.gets(), list):
                if not self._wire.request(words):
                    return
                self._asked.append(words)
                if len(self._asked) > _MAX_WAITING:
                    return
                self._to_server.write(hiredis.pack_command(tuple(words)))
            await self._to_server.drain()

    async def _downwards(self) -> None:
        reader = hiredis.Reader()
        while data := await self._from_server.read(_PIECE):
            reader.feed(data)
            while (answer := reader.gets()) is not False:
                lost, late = self._wire.answer(self._asked.popleft(), answer)
                if late:
                    await asyncio.sleep(late)
                if lost or self._wire.dead:
                    return
                self._to_client.write(encode(answer))
            await self._to_client.drain()


def _entries(answer: Any) -> list[bytes]:
    """The field values of all entries that a read has brought."""
    if not isinstance(answer, list):
        return []
    return [value for _, entries in answer for _, fields in entries for value in fields or ()]


def _place(key: bytes) -> str:
    """A key without its bus: ``topic:alerts``, ``queue:camera:inbox:2``."""
    return key.decode().partition("}:")[2]
