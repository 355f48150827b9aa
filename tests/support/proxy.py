"""A proxy between client and server that breaks the wire where a test says so.

async with Proxy(server.url) as proxy:
    lost = proxy.lose_reply_to(b"EVALSHA")   # the server runs the command, its answer never arrives
    ... client on proxy.url ...
    await lost.wait()
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

import hiredis

from petalbus.daemon.server.probe import unix_url

from support.servers import short_directory


@dataclass
class _Loss:
    word: bytes
    happened: asyncio.Event = field(default_factory=asyncio.Event)
    taken: bool = False


class Proxy:
    """Forwards bytes to the server of ``target`` (a ``unix://`` or ``redis://`` URL) until told otherwise.

    Listens on a unix socket, or with ``tcp=True`` on a port of the loopback interface; ``url`` is its address.
    ``fragment`` splits what the server sends into pieces of so many bytes, each in a write of its own.
    """

    def __init__(self, target: str, *, tcp: bool = False, fragment: int = 0) -> None:
        self.url = ""
        self.connections = 0
        self.refusing = False
        self._accepting = 0
        self._target = urlsplit(target)
        self._tcp = tcp
        self._fragment = fragment
        self._losses: list[_Loss] = []
        self._open: set[_Connection] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None
        self._cleanup = contextlib.ExitStack()

    async def __aenter__(self) -> Self:
        if self._tcp:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
            self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        else:
            path = self._cleanup.enter_context(short_directory()) / "p.sock"
            self._server = await asyncio.start_unix_server(self._accept, path)
            self.url = unix_url(str(path))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.refusing = True
        self.resume()
        while self._open or self._accepting:  # again and again: one may just have been accepted
            self.cut()
            await asyncio.sleep(0.01)
        self._cleanup.close()

    def lose_reply_to(self, word: bytes = b"") -> asyncio.Event:
        """Lose the reply of the next command that contains ``word`` (any letter case), and cut that connection.

        The server has executed the command then. The event is set when it has happened. Each call loses one reply.
        """
        loss = _Loss(word.upper())
        self._losses.append(loss)
        return loss.happened

    def cut(self) -> int:
        """Cut every connection now, without a farewell; how many there were."""
        number = len(self._open)
        for connection in list(self._open):
            connection.cut()
        return number

    def stall(self) -> None:
        """Keep the connections and forward nothing."""
        self._flowing.clear()

    def resume(self) -> None:
        """Forward again, also what was held back."""
        self._flowing.set()

    async def flowing(self) -> None:
        """Wait while stalled."""
        await self._flowing.wait()

    def claim(self, command: bytes) -> _Loss | None:
        """The ordered loss that this command falls under."""
        for loss in self._losses:
            if not loss.taken and loss.word in command.upper():
                loss.taken = True
                return loss
        return None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.refusing:
            writer.transport.abort()
            return
        self._accepting += 1
        try:
            if self._target.scheme == "unix":
                upstream = await asyncio.open_unix_connection(unquote(self._target.path))
            else:
                upstream = await asyncio.open_connection(self._target.hostname, self._target.port)
        except OSError:
            writer.transport.abort()
            return
        finally:
            self._accepting -= 1
        connection = _Connection(self, (reader, writer), upstream, self._fragment)
        self._open.add(connection)
        await connection.run()
        self._open.discard(connection)


class _Connection:
    def __init__(
        self,
        proxy: Proxy,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        fragment: int,
    ) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._proxy = proxy
        self._from_client, self._to_client = client
        self._from_server, self._to_server = server
        self._fragment = fragment
        self._commands = hiredis.Reader()
        self._replies = hiredis.Reader()
        self._asked = 0
        self._answered = 0
        self._loss: tuple[int, _Loss] | None = None
        if fragment and (end := self._to_client.get_extra_info("socket")).family == socket.AF_INET:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def run(self) -> None:
        """Until one side ends or the connection is cut."""
        ways = [
            asyncio.create_task(self._upwards(), name="proxy.upwards"),
            asyncio.create_task(self._downwards(), name="proxy.downwards"),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.cut()
            await asyncio.gather(*ways, return_exceptions=True)
            self.done.set_result(None)

    def cut(self) -> None:
        """Abort both sides."""
        self._to_client.transport.abort()
        self._to_server.transport.abort()

    async def _upwards(self) -> None:
        while data := await self._from_client.read(1 << 16):
            await self._proxy.flowing()
            self._commands.feed(data)
            while (command := self._commands.gets()) is not False:
                self._asked += 1
                if self._loss is None and (loss := self._proxy.claim(_words(command))):
                    self._loss = (self._asked, loss)
            self._to_server.write(data)
            await self._to_server.drain()

    async def _downwards(self) -> None:
        while data := await self._from_server.read(1 << 16):
            await self._proxy.flowing()
            self._replies.feed(data)
            while (reply := self._replies.gets()) is not False:
                self._answered += not isinstance(reply, hiredis.PushNotification)
            if self._loss is not None and self._answered >= self._loss[0]:
                self._loss[1].happened.set()
                return
            step = self._fragment or len(data)
            for start in range(0, len(data), step):
                self._to_client.write(data[start : start + step])
                await self._to_client.drain()
                if self._fragment:
                    await asyncio.sleep(0)


def _words(command: object) -> bytes:
    return b" ".join(part for part in command if isinstance(part, bytes)) if isinstance(command, list) else b""
