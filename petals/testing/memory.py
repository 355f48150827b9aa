"""A server in memory: what a bus needs of Redis, in this process and on this event loop.

It listens on a unix socket in a temporary directory and runs commands on fakeredis. Where fakeredis is no server
(blocking reads, INFO, the flags of scripts), this module answers by itself. Nothing survives its end, and it is slow:
about a millisecond a record. The proof of anything that must hold on a vehicle is the real server.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import re
from collections import deque
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Self

import hiredis

VERSION: Final = (7, 2)
_READING: Final = frozenset(
    b"CLIENT CONFIG EXISTS GET HEXISTS HGET HGETALL HLEN HMGET INFO PING SCAN SCRIPT SMEMBERS TYPE XINFO XLEN XPENDING "
    b"XRANGE XREVRANGE".split()
)
"""Commands after which no blocked read can have found anything."""

_BLOCKING: Final = frozenset(b"BLPOP BRPOP BLMOVE BRPOPLPUSH BLMPOP BZPOPMIN BZPOPMAX BZMPOP WAIT WAITAOF".split())
_INFO: Final = (
    f"# Server\r\nredis_version:{'.'.join(map(str, VERSION))}.0\r\nredis_mode:standalone\r\n"
    "# Replication\r\nrole:master\r\n# Persistence\r\nloading:0\r\naof_enabled:0\r\n"
    "# Memory\r\nmaxmemory:0\r\nmaxmemory_policy:noeviction\r\n# Cluster\r\ncluster_enabled:0\r\n"
).encode()
_CONFIG: Final = {b"appendonly": b"no", b"appendfsync": b"no", b"maxmemory": b"0", b"maxmemory-policy": b"noeviction"}
_ERROR_WORD: Final = re.compile(r"[A-Z]{3,} ")


class MemoryServer:
    """``async with MemoryServer(path)`` listens on the unix socket ``path`` until the block ends.

    Raises ImportError that says what to install when fakeredis is not there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._store: Any = None
        self._scripts: dict[bytes, bytes] = {}
        self._clients: dict[int, _Client] = {}
        self._numbers = itertools.count(1)
        self._listening: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        fakeredis = _fakeredis()
        self._store = fakeredis.FakeServer(version=VERSION, server_type="redis")
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_unix_server(lambda: _Client(self), self._path)
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._listening is not None
        self._listening.close()
        for client in list(self._clients.values()):
            client.abort()
        await asyncio.sleep(0)  # once, so that every connection is told that it is lost

    def open(self, client: _Client) -> tuple[int, Any]:
        """A number and a connection of fakeredis for a new client."""
        connection = _fakeredis().FakeRedisConnection(server=self._store, protocol=2)
        connection.connect()
        number = next(self._numbers)
        self._clients[number] = client
        return number, connection

    def gone(self, number: int) -> None:
        """A client has left."""
        self._clients.pop(number, None)

    def ran(self, word: bytes) -> None:
        """A command was run: blocked reads look again, and subscribers get what was published."""
        if word in _READING:
            return
        for client in list(self._clients.values()):
            client.look_again()

    def unblock(self, number: bytes, *, error: bool) -> int:
        """CLIENT UNBLOCK: 1 when that client was blocked."""
        client = self._clients.get(int(number))
        return int(client is not None and client.unblock(error=error))

    def load(self, text: bytes) -> bytes:
        """SCRIPT LOAD: fakeredis knows no ``#!lua`` line, so it gets the script without; the name stays the whole's."""
        name = hashlib.sha1(text, usedforsecurity=False).hexdigest().encode()
        self._scripts[name] = text.partition(b"\n")[2] if text.startswith(b"#!") else text
        return name

    def script(self, name: bytes) -> bytes | None:
        """The text of a loaded script, as fakeredis can run it."""
        return self._scripts.get(name.lower())


class _Client(asyncio.Protocol):
    """One connection: commands in their order, one blocked read at most."""

    def __init__(self, server: MemoryServer) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader()
        self._waiting: deque[list[bytes]] = deque()
        self._blocked: list[bytes] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._number = 0
        self._connection: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of asyncio.Protocol."""
        self._transport = transport  # type: ignore[assignment]  # uvloop's transports are not asyncio's classes
        self._number, self._connection = self._server.open(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        """Part of asyncio.Protocol."""
        self._transport = None
        self._waiting.clear()
        self._end_block()
        self._server.gone(self._number)
        self._connection.disconnect()

    def data_received(self, data: bytes) -> None:
        """Part of asyncio.Protocol."""
        self._reader.feed(data)
        while isinstance(words := self._reader.gets(), list):
            self._waiting.append(words)
        self._go_on()

    def abort(self) -> None:
        """Drop the connection."""
        if self._transport is not None:
            self._transport.abort()

    def look_again(self) -> None:
        """Something was written: has the blocked read found anything, was anything published?"""
        if self._transport is None:
            return
        while self._connection.can_read(0):
            self._write(self._answer())
        if self._blocked is not None:
            found = self._ask(self._blocked)
            if found:
                self._end_block()
                self._write(found)
                self._loop.call_soon(self._go_on)

    def unblock(self, *, error: bool) -> bool:
        """End the blocked read; False when there is none."""
        if self._blocked is None:
            return False
        self._end_block()
        self._write(_Refusal("UNBLOCKED client unblocked via CLIENT UNBLOCK") if error else None)
        self._loop.call_soon(self._go_on)
        return True

    def _go_on(self) -> None:
        while self._waiting and self._blocked is None and self._transport is not None:
            words = self._waiting.popleft()
            word = words[0].upper()
            read, seconds = _without_block(words) if word in (b"XREAD", b"XREADGROUP") else (words, None)
            answer = self._run(word, read)
            if seconds is not None and not answer and not isinstance(answer, Exception):
                self._blocked = read
                self._timer = self._loop.call_later(seconds, self._time_is_up) if seconds else None
                return
            self._write(answer)
            self._server.ran(word)

    def _time_is_up(self) -> None:
        self._end_block()
        self._write(None)
        self._go_on()

    def _end_block(self) -> None:
        self._blocked = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _run(self, word: bytes, words: list[bytes]) -> Any:
        """Answer by ourselves what fakeredis cannot, else ask it."""
        known = self._known(word, words[1].upper() if len(words) > 1 else b"", words)
        if known is not None:
            return known
        if word in (b"EVAL", b"EVALSHA"):
            text = self._server.script(words[1] if word == b"EVALSHA" else self._server.load(words[1]))
            if text is None:
                return _Refusal("NOSCRIPT No matching script. Please use EVAL.")
            return self._ask([b"EVAL", text, *words[2:]])
        if word in _BLOCKING:
            return _Refusal(f"ERR {word.decode()} would block: the bus in memory has no such command, a real one has")
        return self._ask(words)

    def _known(self, word: bytes, sub: bytes, words: list[bytes]) -> Any:
        """Questions about the server and about connections; None for everything else."""
        if word == b"INFO":
            return _INFO
        if (word, sub) == (b"CONFIG", b"GET"):
            return [part for name in words[2:] if name in _CONFIG for part in (name, _CONFIG[name])]
        if (word, sub) == (b"CLIENT", b"ID"):
            return self._number
        if (word, sub) == (b"CLIENT", b"UNBLOCK"):
            return self._server.unblock(words[2], error=words[3:4] == [b"ERROR"])
        if (word, sub) == (b"SCRIPT", b"LOAD"):
            return self._server.load(words[2])
        return None

    def _ask(self, words: list[bytes]) -> Any:
        self._connection.get_socket().sendall(hiredis.pack_command(tuple(words)))
        return self._answer() if self._connection.can_read(0) else _NO_ANSWER

    def _answer(self) -> Any:
        try:
            return self._connection.read_response(disable_decoding=True)
        except Exception as error:  # noqa: BLE001  # an error reply, whatever class fakeredis has made of it
            return _Refusal(_error_text(error))

    def _write(self, answer: Any) -> None:
        if self._transport is not None and answer is not _NO_ANSWER:
            protocol = self._connection.get_socket()._client_info.protocol_version
            self._transport.write(encode(answer, protocol))


_NO_ANSWER: Final = object()


class _Refusal(Exception):
    """An error reply."""


def _without_block(words: list[bytes]) -> tuple[list[bytes], float | None]:
    """A read without its BLOCK, and for how many seconds it blocks (None: it does not; 0: for ever)."""
    for at, word in enumerate(words):
        if word.upper() == b"STREAMS":
            break
        if word.upper() == b"BLOCK":
            return [*words[:at], *words[at + 2 :]], int(words[at + 1]) / 1000
    return words, None


def _error_text(error: Exception) -> str:
    """The error reply of which redis-py has made an exception."""
    from redis import exceptions  # noqa: PLC0415  # only with fakeredis

    text = str(error).replace("\r", " ").replace("\n", " ")
    if "The XGROUP subcommand requires the key" in text:  # its answer to a read of a stream that is not there
        return "NOGROUP No such key or consumer group"
    if isinstance(error, exceptions.NoScriptError):
        return f"NOSCRIPT {text}"
    return text if _ERROR_WORD.match(text) else f"ERR {text}"


def encode(value: Any, protocol: int = 2) -> bytes:  # one line a type
    """A reply on the wire, RESP2 or RESP3."""
    if value is None:
        return b"_\r\n" if protocol == 3 else b"*-1\r\n"
    if isinstance(value, Exception):
        return f"-{value}\r\n".encode()
    if isinstance(value, bool):
        return (b"#t\r\n" if value else b"#f\r\n") if protocol == 3 else b":%d\r\n" % value
    if isinstance(value, int):
        return b":%d\r\n" % value
    if isinstance(value, float):
        value = repr(value).encode()
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        return b"$%d\r\n%b\r\n" % (len(value), value)
    if isinstance(value, dict):
        items = b"".join(encode(part, protocol) for item in value.items() for part in item)
        return (b"%%%d\r\n" % len(value) if protocol == 3 else b"*%d\r\n" % (2 * len(value))) + items
    if isinstance(value, list | tuple | set | frozenset):
        return b"*%d\r\n" % len(value) + b"".join(_encode_item(part, protocol) for part in value)
    raise TypeError(f"a reply of type {type(value).__name__} cannot be written")


def _encode_item(value: Any, protocol: int) -> bytes:
    return b"$-1\r\n" if value is None and protocol == 2 else encode(value, protocol)


def _fakeredis() -> Any:
    try:
        import_module("lupa")  # what fakeredis runs scripts with
        return import_module("fakeredis")
    except ImportError as error:
        raise ImportError(
            "the bus in memory needs fakeredis with Lua: pip install 'petalbus[testing]', or use the real bus"
        ) from error
