"""A wire to an S3 server that breaks where a test says so: it understands HTTP just enough.

wire.rule("PUT", "partNumber=2", answer(500, "InternalError"), times=2)
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Self
from urllib.parse import urlsplit

Act = Callable[["Exchange"], Awaitable[bytes | None]]
_LENGTH: Final = re.compile(rb"(?im)^content-length: *(\d+)")


@dataclass
class Exchange:
    """One request. ``forward`` sends it on and returns the whole answer."""

    wire: Wire
    method: str
    target: str
    head: bytes
    body: bytes

    async def forward(self) -> bytes:
        """What the server answers."""
        return await self.wire.forward(self.head, self.body, self.method)


@dataclass
class Rule:
    """``act`` for the next ``times`` requests that match; ``hits``: how many did."""

    method: str
    part: str
    act: Act
    times: int
    hits: int = 0
    happened: asyncio.Event = field(default_factory=asyncio.Event)


async def settled() -> None:
    """Some turns of the loop."""
    for _ in range(4):
        await asyncio.sleep(0)


class Wire:
    """``async with Wire(server.url) as wire``: clients use ``wire.url``."""

    def __init__(self, target: str) -> None:
        self._target = urlsplit(target)
        self._server: asyncio.Server | None = None
        self._rules: list[Rule] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.requests: list[tuple[str, str]] = []
        self.received = 0
        self.delay = 0.0

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.shut()

    async def open(self) -> None:
        """Listen, at the same port as before."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=1 << 20)
        self.port = self._server.sockets[0].getsockname()[1]

    async def shut(self) -> None:
        """Listen no more, and cut what is open: the link is gone."""
        if self._server is None:
            return
        self._server.close()
        await settled()  # what is just being accepted is among the writers then
        for writer in list(self._writers):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._server = None

    def rule(self, method: str, part: str, act: Act, *, times: int = 1) -> Rule:
        """Do ``act`` with requests of a method whose target contains ``part``."""
        made = Rule(method, part, act, times)
        self._rules.append(made)
        return made

    def count(self, method: str, part: str = "") -> int:
        """Requests so far of a method whose target contains ``part``."""
        return sum(1 for one, target in self.requests if one == method and part in target)

    async def forward(self, head: bytes, body: bytes, method: str) -> bytes:
        """Ask the server, on a connection of its own."""
        reader, writer = await asyncio.open_connection(self._target.hostname, self._target.port)
        try:
            head = re.sub(rb"(?im)^connection:[^\r]*\r\n", b"", head)
            head = re.sub(rb"(?im)^expect:[^\r]*\r\n", b"", head)
            writer.write(head[:-2] + b"Connection: close\r\n\r\n" + body)
            await writer.drain()
            return await reader.read(-1)
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"100-continue" in head.lower():
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        method, target = head.split(b" ", 2)[:2]
        found = _LENGTH.search(head)
        body = b""
        for _ in range(int(found[1]) // 65536 + 1 if found else 0):
            piece = await reader.readexactly(min(65536, int(found[1] if found else 0) - len(body)))
            self.received += len(piece)
            body += piece
        if self.delay and method == b"PUT":
            await asyncio.sleep(self.delay)
        exchange = Exchange(self, method.decode(), target.decode(), head, body)
        self.requests.append((exchange.method, exchange.target))
        rule = next((one for one in self._rules if self._matches(one, exchange)), None)
        if rule is None:
            answer: bytes | None = await exchange.forward()
        else:
            rule.hits += 1
            rule.happened.set()
            answer = await rule.act(exchange)
        if answer is None:
            return False
        writer.write(answer)
        await writer.drain()
        return False

    @staticmethod
    def _matches(rule: Rule, exchange: Exchange) -> bool:
        return rule.hits < rule.times and rule.method == exchange.method and rule.part in exchange.target


def answer(status: int, code: str = "", *, headers: str = "") -> Act:
    """An error of the store."""

    async def act(exchange: Exchange) -> bytes:
        body = f"<Error><Code>{code}</Code><Message>told by the test</Message></Error>".encode()
        if exchange.method == "HEAD" or not code:
            body = b""
        head = f"HTTP/1.1 {status} Told\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{headers}\r\n"
        return head.encode() + body

    return act


async def reset(_exchange: Exchange) -> None:
    """The connection ends without an answer; the server has done nothing."""


async def lose_answer(exchange: Exchange) -> None:
    """The server does it, its answer is lost."""
    await exchange.forward()


async def stall(_exchange: Exchange) -> None:
    """No answer for long."""
    await asyncio.sleep(3600)


async def other_etag(exchange: Exchange) -> bytes:
    """The server's answer with another checksum."""
    return re.sub(rb'(?i)(etag: *")[0-9a-f]{4}', rb"\g<1>0000", await exchange.forward())
