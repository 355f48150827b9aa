"""A small HTTP client for one server on this machine: connections stay open, nothing is ever asked a second time."""

from __future__ import annotations

import asyncio
import importlib
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

_LARGEST_ANSWER: Final = 1 << 20
_PIECE: Final = 64 * 1024
_KEEP: Final = 4.0
"""Seconds that an unused connection is used again where the server says nothing: many close after five."""
_MARGIN: Final = 1.0
_MOST_IDLE: Final = 8


class NoAnswer(Exception):
    """No whole answer came. ``sent``: the request may have been read, so it may have been done."""

    def __init__(self, text: str, *, sent: bool) -> None:
        super().__init__(text)
        self.sent = sent


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    status: int
    body: bytes


class _Connection:
    """One connection and what is known about it."""

    __slots__ = ("keep", "parser", "reader", "unused_since", "writer")

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, parser: Any) -> None:
        self.reader = reader
        self.writer = writer
        self.parser = parser
        self.unused_since = 0.0
        self.keep = _KEEP

    @property
    def is_usable(self) -> bool:
        if self.reader.at_eof() or self.writer.is_closing():
            return False
        return time.monotonic() - self.unused_since < self.keep


class HttpClient:
    """Asks one server. Requests at the same time have a connection each."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self._unused: list[_Connection] = []
        self._h11: Any = None
        self._host_header = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def ask(self, method: str, path: str, body: bytes | None = None, *, timeout: float) -> Answer:
        """One request (``body``: JSON) and its answer within ``timeout`` seconds. Raises NoAnswer."""
        sent = False
        connection: _Connection | None = None
        try:
            async with asyncio.timeout(timeout):
                connection = await self._take()
                sent = True
                answer = await self._exchange(connection, method, path, body)
        except TimeoutError:
            what = f"no answer to {method} {path} within {timeout:g} s" if sent else "it does not take connections"
            raise NoAnswer(f"{self._host_header}: {what}", sent=sent) from None
        except ConnectionRefusedError:
            raise NoAnswer(f"nothing listens at {self._host_header}", sent=False) from None
        except OSError as error:
            raise NoAnswer(f"{self._host_header}: {error.strerror or error}", sent=sent) from None
        else:
            self._give_back(connection)
            connection = None
            return answer
        finally:
            if connection is not None:
                connection.writer.transport.abort()

    async def until_it_ends(self, *, timeout: float) -> bool:
        """Hold a connection that asks nothing until the server closes it; whether it did so without a word.

        ``timeout``: seconds for connecting. Raises OSError (TimeoutError is one) when nobody listens.
        """
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            return not await reader.read(1)
        except ConnectionError:
            return True
        finally:
            writer.transport.abort()

    async def close(self) -> None:
        """Close the connections that nobody uses."""
        unused, self._unused = self._unused, []
        for connection in unused:
            connection.writer.close()
        for connection in unused:
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(1):
                    await connection.writer.wait_closed()

    async def _take(self) -> _Connection:
        while self._unused:
            connection = self._unused.pop()
            if connection.is_usable:
                return connection
            connection.writer.transport.abort()
        reader, writer = await asyncio.open_connection(self.host, self.port, limit=_PIECE)
        end = writer.get_extra_info("socket")
        if end is not None and end.family != getattr(socket, "AF_UNIX", None):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if self._h11 is None:  # only now is anybody there to speak with
                self._h11 = await asyncio.to_thread(importlib.import_module, "h11")
            return _Connection(reader, writer, self._h11.Connection(self._h11.CLIENT))
        except BaseException:
            writer.transport.abort()
            raise

    def _give_back(self, connection: _Connection) -> None:
        parser = connection.parser
        done = self._h11.DONE
        if parser.our_state is not done or parser.their_state is not done or len(self._unused) >= _MOST_IDLE:
            connection.writer.transport.abort()
            return
        parser.start_next_cycle()
        connection.unused_since = time.monotonic()
        self._unused.append(connection)

    async def _exchange(self, connection: _Connection, method: str, path: str, body: bytes | None) -> Answer:
        h11, parser, writer = self._h11, connection.parser, connection.writer
        headers = [("host", self._host_header), ("accept", "application/json")]
        if body is not None:
            headers += [("content-type", "application/json"), ("content-length", str(len(body)))]
        piece = parser.send(h11.Request(method=method, target=path, headers=headers))
        piece += parser.send(h11.Data(data=body)) if body else b""
        writer.write(piece + parser.send(h11.EndOfMessage()))
        await writer.drain()
        try:
            return await self._answer(connection)
        except h11.RemoteProtocolError as error:
            raise NoAnswer(f"{self._host_header} does not speak HTTP: {error}", sent=True) from None

    async def _answer(self, connection: _Connection) -> Answer:
        h11, parser = self._h11, connection.parser
        status, parts, size = 0, [], 0
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                data = await connection.reader.read(_PIECE)
                if not data and status == 0:
                    raise NoAnswer(f"{self._host_header} closed the connection without an answer", sent=True)
                parser.receive_data(data)
            elif isinstance(event, h11.Response):
                status = event.status_code
                connection.keep = _keep_of(event.headers)
            elif isinstance(event, h11.Data):
                size += len(event.data)
                if size > _LARGEST_ANSWER:
                    raise NoAnswer(f"{self._host_header} answers with more than {_LARGEST_ANSWER} bytes", sent=True)
                parts.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                return Answer(status, b"".join(parts))
            elif isinstance(event, h11.ConnectionClosed):
                raise NoAnswer(f"{self._host_header} closed the connection in its answer", sent=True)


def _keep_of(headers: Any) -> float:
    """Seconds that a connection may wait for its next request: less than what the server says."""
    for name, value in headers:
        if name == b"keep-alive":
            for word in value.split(b","):
                key, _, number = word.strip().partition(b"=")
                if key.lower() == b"timeout" and number.isdigit():
                    return max(0.0, int(number[:6]) - _MARGIN)
    return _KEEP
