"""The heartbeat of a consumer, from a thread with a connection of its own.

A handler may keep the event loop busy for minutes; it is slow, not dead, and its work must not be taken away. So the
count goes up as long as the process runs, whatever the loop does.
"""

from __future__ import annotations

import logging
import socket
import threading
import time

import hiredis

from petalbus.daemon.bus.url import Address

log = logging.getLogger("petalbus.bus")


class Heartbeat:
    """Counts up ``field`` of the hash ``beats`` every ``period`` seconds, and refreshes the app's presence."""

    def __init__(self, address: Address, *, beats: str, field: str, status: str, period: float) -> None:
        self._address = address
        self._beats = beats
        self._status = status
        self._period = period
        self.field = field
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin beating. The first beat is the owner's business, so that it comes before the first read."""
        self._thread = threading.Thread(target=self._run, name="petalbus-heartbeat", daemon=True)
        self._thread.start()

    def rename(self, field: str) -> None:
        """Beat for another consumer name from now on."""
        self.field = field

    def stop(self) -> None:
        """Stop within one period; does not wait for the thread."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with _Wire(self._address, timeout=max(1.0, self._period)) as wire:
                    while not self._stop.wait(self._period):
                        wire.call("HINCRBY", self._beats, self.field, 1)
                        wire.call("HSET", self._status, "status", "online", "last_seen", f"{time.time():.3f}")
            except (OSError, hiredis.HiredisError) as error:
                log.debug("heartbeat interrupted: %s", error)
                self._stop.wait(min(0.1, self._period))


class _Wire:
    """A blocking connection for one request at a time."""

    def __init__(self, address: Address, *, timeout: float) -> None:
        self._reader = hiredis.Reader()
        if address.path is not None:
            self._socket: socket.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.settimeout(timeout)
            self._socket.connect(address.path)
        else:
            self._socket = socket.create_connection((address.host, address.port), timeout=timeout)
            context = address.ssl_context()
            if context is not None:
                self._socket = context.wrap_socket(self._socket, server_hostname=address.host)
        if address.password is not None:
            self.call("AUTH", address.username or "default", address.password)

    def __enter__(self) -> _Wire:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    def call(self, *args: str | int) -> object:
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
