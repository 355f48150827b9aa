"""RedisProxy: what it is made of, and its client of the bus."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Any, Self

from petalbus.daemon.bus.errors import BusError
from petalbus.petals.proxies.errors import ProxyNotReady
from petalbus.petals.proxies.redis.keyvalue import KeyValue
from petalbus.petals.proxies.redis.messages import TwoWayMessages
from petalbus.petals.proxies.redis.pubsub import PubSub

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus

APP: str = "petal-app-manager"
_RETRY_SECONDS = 1.0

log = logging.getLogger("RedisProxy")


class RedisProxy(TwoWayMessages, PubSub, KeyValue):
    """Keys, channels and messages between applications. ``async with RedisProxy(...)`` starts and stops it.

    Where the server is: ``url``, else ``unix_socket_path``, else ``host`` and ``port``; nothing given: the bus that
    runs on this machine, found by its data directory. ``app_id``: who we are for other applications, unique among them.
    ``debug`` shows what is sent and received.
    """

    kind = "redis"

    def __init__(
        self,
        host: str | None = None,
        port: int | None = None,
        db: int = 0,
        password: str | None = None,
        debug: bool = False,
        unix_socket_path: str | None = None,
        app_id: str | None = None,
        *,
        url: str | None = None,
        bus: str | None = None,
    ) -> None:
        super().__init__()
        if db != 0:
            raise ValueError(f"db={db}: the bus lives in database 0 of its server, and so do petals' keys")
        self.app_id = app_id or APP
        self._url = url or _address(host, port, password, unix_socket_path)
        self._bus_name = bus
        self._bus: Bus | None = None
        self._opening = asyncio.Lock()
        self._connecting: asyncio.Task[None] | None = None
        if debug:
            log.setLevel(logging.DEBUG)

    async def start(self) -> None:
        """Connect. A server that is away is waited for: then it becomes ready later."""
        if self.is_ready or self._connecting is not None:
            return
        try:
            await self._open()
        except (BusError, OSError) as error:
            self._set_ready(False, str(error))
            self._connecting = asyncio.create_task(self._connect_later(), name="redis-connect")

    async def stop(self) -> None:
        """Stop listening, end callbacks, and leave."""
        self._set_ready(False, "stopped")
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            connecting.cancel()
            await asyncio.gather(connecting, return_exceptions=True)
        await self._stop_messages()
        await self._stop_pubsub()
        bus, self._bus = self._bus, None
        if bus is not None:
            await bus.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def health_check(self) -> dict[str, Any]:
        """State of the connection, tried with a write and a read; what subscriptions have done."""
        told = await super().health_check()
        bus = self._bus
        if bus is None:
            return told
        try:
            async with asyncio.timeout(2.0):
                await self.set(f"petalbus:health:{self.app_id}", "1", ex=10)  # a PING would not tell a full disk
                written = await self.get(f"petalbus:health:{self.app_id}") == "1"
        except (ProxyNotReady, RuntimeError, TimeoutError) as error:
            return {**told, "status": "unhealthy", "message": str(error) or "no answer within 2 s"}
        lane = bus.statistics()["command"]
        more = {"app_id": self.app_id, "connects": lane["connects"], "subscriptions": self.subscriptions()}
        return {**told, "status": "healthy" if written else "unhealthy", **more}

    async def _own_bus(self) -> Bus:
        if self._bus is None:
            raise ProxyNotReady(f"the redis proxy cannot be used: {self.reason}")
        return self._bus

    def _bus_now(self) -> Bus | None:
        return self._bus

    async def _open(self) -> None:
        from petalbus.daemon.connect import connect  # noqa: PLC0415  # only where a client is made

        async with self._opening:
            if self._bus is None:
                client = connect(self._url, app=self.app_id, bus=self._bus_name)
                await client.start()
                self._bus = client
            await self._start_pubsub()  # where this fails it is not ready, and all of this is tried again
            self._set_ready(True)
            self._begin_the_late()

    async def _connect_later(self) -> None:
        while True:
            await asyncio.sleep(_RETRY_SECONDS)
            try:
                await self._open()
            except (BusError, OSError) as error:
                self._set_ready(False, str(error))
            else:
                self._connecting = None
                return


def _address(host: str | None, port: int | None, password: str | None, path: str | None) -> str | None:
    """The URL of a server that is described in parts; None where nothing is said of it."""
    if path:
        return f"unix://{os.path.abspath(path)}"  # noqa: PTH100  # links stay
    if host is None and port is None:
        return None
    secret = f":{password}@" if password else ""
    return f"redis://{secret}{host or 'localhost'}:{port or 6379}"
