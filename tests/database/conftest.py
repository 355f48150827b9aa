"""Fixtures of the cloud's tables: a real bus, the config service over real HTTP, and a real DynamoDB server."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.options import BusOptions
from petalbus.handlers.bucket.credentials import Credentials
from petalbus.handlers.database.dynamo import DynamoTables
from petalbus.handlers.database.handler import DatabaseHandler, DatabaseOptions
from petalbus.handlers.database.service import Addresses, HttpTables
from petalbus.handlers.database.tables import Tables
from petalbus.petals.proxies.cloud import CloudDBProxy

from .http_end import CloudService, HttpEnd, Relay
from support.s3_world import free_port
from support.servers import RealServer

MACHINE = "m1"
TABLE = "flight-records"
MINISTACK = shutil.which("ministack", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
_numbers = itertools.count(1)


class World:
    """A bus, the cloud's end, and handlers. ``tables``: makes what a handler writes to."""

    def __init__(self, server: RealServer, bus_name: str, end: HttpEnd, tables: Callable[[], Tables]) -> None:
        self.server = server
        self.bus_name = bus_name
        self.end = end
        self.tables = tables
        self.handler: DatabaseHandler | None = None
        self.stack = AsyncExitStack()
        self._running: AsyncExitStack | None = None

    def client(self, app: str) -> Bus:
        """A client of the test's bus."""
        return Bus(self.server.url, app=app, bus=self.bus_name, options=BusOptions())

    async def start(self, **options: Any) -> DatabaseHandler:
        """A handler, as the daemon has it, with short pauses."""
        told = DatabaseOptions(**{"first_wait": 0.05, "most_wait": 0.2, **options})
        self._running = AsyncExitStack()
        made = DatabaseHandler(self.client("database"), self.tables(), machine=lambda: MACHINE, options=told)
        self.handler = await self._running.enter_async_context(made)
        return made

    async def stop(self) -> None:
        """Stop the handler in order."""
        running, self._running = self._running, None
        if running is not None:
            await running.aclose()

    async def proxy(self, *, wait: float = 20.0, machine: str = MACHINE) -> CloudDBProxy:
        """A cloud proxy on the bus; what it reads comes from the same tables."""
        made = CloudDBProxy(
            f"{self.end.url}/token", self.end.url, f"{self.end.url}/token", machine_id=machine, wait=wait,
            url=self.server.url, bus=self.bus_name, app_id="petal.cloud",
            backend="dynamodb" if isinstance(self.end, Relay) else "http",
        )  # fmt: skip
        await made.start()
        self.stack.push_async_callback(made.stop)
        return made

    async def idle(self, *, seconds: float = 20) -> None:
        """Wait until the handler holds nothing and nothing waits for it."""
        assert self.handler is not None
        async with asyncio.timeout(seconds):
            while self.handler.statistics()["held"] or await self.waiting():
                await asyncio.sleep(0.02)

    async def waiting(self) -> int:
        """Unsettled writes in the inbox."""
        async with self.client("looker") as bus:
            count = 0
            for level in (2, 3):
                key = bus.keys.inbox("database", level)
                if not await bus.ask("EXISTS", key):
                    continue
                groups = await bus.ask("XINFO", "GROUPS", key)
                if not groups:
                    count += await bus.ask("XLEN", key)
                told = [dict(zip(one[::2], one[1::2], strict=True)) for one in groups]
                count += sum(int(one[b"pending"]) + int(one[b"lag"] or 0) for one in told)
            return count

    async def dead(self) -> list[str]:
        """Reasons of dead letters."""
        async with self.client("looker") as bus:
            return [letter.reason for letter in await bus.dead.list("database")]


async def until(condition: Callable[[], Any], *, seconds: float = 20) -> Any:
    """Wait until something is true."""
    async with asyncio.timeout(seconds):
        while not (found := condition()):
            await asyncio.sleep(0.02)
        return found


@pytest.fixture
async def cloud() -> AsyncIterator[CloudService]:
    """The config service."""
    async with CloudService() as made:
        yield made


@pytest.fixture
async def world(server: RealServer, bus_name: str, cloud: CloudService) -> AsyncIterator[World]:
    """With the config service: ``await world.start()``."""
    made = World(server, bus_name, cloud, lambda: HttpTables(Addresses(cloud.url), f"{cloud.url}/token", timeout=10))
    async with made.stack:
        yield made
        await made.stop()


@pytest.fixture(scope="session")
def dynamo_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A real server that speaks DynamoDB's language, one for all tests."""
    if MINISTACK is None:
        pytest.skip("no ministack: the package ministack brings it (a server that speaks DynamoDB's language)")
    port = free_port()
    folder = tmp_path_factory.mktemp("ministack")
    words = {"GATEWAY_PORT": str(port), "SERVICES": "dynamodb", "MINISTACK_HOST": "127.0.0.1"}
    child = subprocess.Popen(
        [MINISTACK], cwd=folder, env={**os.environ, **words, "PYTHONPATH": ""},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        end = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert child.poll() is None, "ministack has ended"
            assert time.monotonic() < end, "ministack does not answer"
            time.sleep(0.05)
        yield port
    finally:
        child.kill()
        child.wait()


@pytest.fixture
async def relay(dynamo_port: int) -> AsyncIterator[Relay]:
    """The way to the DynamoDB server."""
    async with Relay(dynamo_port) as made:
        yield made


@pytest.fixture
async def dynamo(relay: Relay) -> AsyncIterator[DynamoTables]:
    """Tables of this test alone: their names have a prefix."""
    async with AsyncExitStack() as stack:
        made = dynamo_tables(relay)
        stack.push_async_callback(made.close)
        client = await made._connected()
        for name in (TABLE, "config"):
            await client.create_table(
                TableName=f"{made.prefix}{name}",
                KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
                AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
                BillingMode="PAY_PER_REQUEST",
            )
        relay.calls.clear()
        yield made


def dynamo_tables(relay: Relay, prefix: str | None = None) -> DynamoTables:
    """A client of the DynamoDB server."""
    prefix = f"t{next(_numbers)}_" if prefix is None else prefix
    return DynamoTables(
        lambda: Credentials(f"{relay.url}/token", timeout=5), endpoint=relay.url, prefix=prefix, timeout=10
    )


@pytest.fixture
async def dynamo_world(server: RealServer, bus_name: str, relay: Relay, dynamo: DynamoTables) -> AsyncIterator[World]:
    """With DynamoDB."""
    made = World(server, bus_name, relay, lambda: dynamo_tables(relay, dynamo.prefix))
    async with made.stack:
        yield made
        await made.stop()
