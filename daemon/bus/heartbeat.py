"""The heartbeat of a consumer, from a thread with a connection of its own.

A handler may keep the event loop busy for minutes; it is slow, not dead, and its work must not be taken away. So the
count goes up as long as the process runs, whatever the loop does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from typing import Self

import hiredis

from petalbus.daemon.bus.keys import Keys
from petalbus.daemon.bus.scripts import load
from petalbus.daemon.bus.url import Address

log = logging.getLogger("petalbus.bus")


def consumer_name(app: str) -> str:
    """A name that is never used twice: a fenced consumer must not come back under its old name."""
    return f"{app}-{os.getpid()}-{os.urandom(4).hex()}"


class Heartbeat:
    """Beats for the consumer ``name`` of ``app`` every ``period`` seconds, and keeps the app's presence fresh."""

    def __init__(self, address: Address, *, keys: Keys, app: str, name: str, period: float) -> None:
        self._address = address
        self._keys = keys
        self._app = app
        self._name = name
        self._period = period
        self._script = load("beat").text
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def field(self) -> str:
        """Where the count stands in the hash of heartbeats."""
        return f"{self._app}|{self._name}"

    def arguments(self) -> tuple[list[str], list[bytes | str | int]]:
        """Keys and arguments of one beat, for the owner's first one: it comes before the first read."""
        keys = [self._keys.beats, self._keys.status(self._app), self._keys.apps]
        return keys, [self.field, self._app, f"{time.time():.3f}"]

    def start(self) -> None:
        """Begin beating."""
        self._thread = threading.Thread(target=self._run, name="petalbus-heartbeat", daemon=True)
        self._thread.start()

    def rename(self, name: str) -> None:
        """Beat for another consumer name from now on."""
        self._name = name

    async def stop(self) -> None:
        """Stop, and wait for a beat that is under way: it must not come after the farewell."""
        self._stop.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, 1.5)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with _Wire(self._address, timeout=max(1.0, self._period)) as wire:
                    while not self._stop.wait(self._period):
                        keys, args = self.arguments()
                        wire.call("EVAL", self._script, len(keys), *keys, *args)
            except (OSError, hiredis.HiredisError) as error:
                log.debug("heartbeat interrupted: %s", error)
                self._stop.wait(min(0.1, self._period))


class _Wire:
    """A blocking connection for one request at a time."""

    def __init__(self, address: Address, *, timeout: float) -> None:
        self._reader = hiredis.Reader()
        self._socket = _connected(address, timeout)
        try:
            if address.password is not None:
                self.call("AUTH", address.username or "default", address.password)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    def call(self, *args: bytes | str | int) -> object:
        self._socket.sendall(hiredis.pack_command(args))
        while True:
            reply: object = self._reader.gets()
            if reply is not False:
                break
            data = self._socket.recv(4096)
            if not data:
                raise ConnectionResetError("closed by the server")
            self._reader.feed(data)
        if isinstance(reply, hiredis.HiredisError):
            raise reply
        return reply


def _connected(address: Address, timeout: float) -> socket.socket:
    if address.path is not None:
        plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        target: str | tuple[str, int] = address.path
    else:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        plain = socket.socket(family, socket.SOCK_STREAM)
        target = (address.host, address.port)
    try:
        plain.settimeout(timeout)
        plain.connect(target)
        context = address.ssl_context()
        return context.wrap_socket(plain, server_hostname=address.host) if context is not None else plain
    except BaseException:
        plain.close()
        raise
