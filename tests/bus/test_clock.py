"""A client on another machine than its bus counts deadlines on the bus's clock, not on its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bus.clients import Clients
from petalbus.daemon.bus import clock as clock_module
from petalbus.daemon.bus.errors import ReplyError, RequestTimeout
from petalbus.schemas.record import Record
from petalbus.schemas.stamps import BOOT_ID, boot_clock_ns

from support.servers import TlsServer

AHEAD_NS = 5_000 * 1_000_000_000
"""The bus's machine has been up so much longer than this one."""


@contextlib.asynccontextmanager
async def other_machine(clients: Clients, url: str) -> AsyncIterator[None]:
    """Keeps the bus's clock as the daemon of another machine does, whose boot is not ours."""
    keeper = await clients.open("keeper", url=url, beside_bus=True)

    async def keep() -> None:
        while True:
            mono = boot_clock_ns() + AHEAD_NS
            await keeper.call("HSET", keeper.keys.clock, "boot_id", "aaaaaaaaaaaa", "mono", mono)
            await asyncio.sleep(0.2)

    task = asyncio.create_task(keep(), name="other-machine")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_client_on_another_machine_follows_the_clock_of_the_bus(
    clients: Clients, tls_server: TlsServer
) -> None:
    """Deadlines set over there hold over here: in time it runs, and its stamps are those of the bus's boot."""
    async with other_machine(clients, tls_server.tcp_url):
        vehicle = clients.make("vehicle", url=tls_server.tcp_url)
        seen: list[Record] = []

        @vehicle.on("command")
        async def handle(record: Record) -> dict[str, Any]:
            seen.append(record)
            return {"status": "success"}

        await vehicle.start()
        gcs = await clients.open("gcs", url=tls_server.tcp_url)
        assert (await gcs.request("vehicle", "command", {"command": "land"}, timeout=5)).data["status"] == "success"
        assert seen[0].boot_id == "aaaaaaaaaaaa"
        assert abs((seen[0].mono or 0) - boot_clock_ns() - AHEAD_NS) < 1e9
        assert abs(gcs.clock.offset - AHEAD_NS) < 0.2e9


async def test_a_deadline_over_there_still_passes(clients: Clients, tls_server: TlsServer) -> None:
    """An expired command is never run, wherever its sender counted."""
    async with other_machine(clients, tls_server.tcp_url):
        gcs = await clients.open("gcs", url=tls_server.tcp_url)
        with pytest.raises(RequestTimeout):
            await gcs.request("vehicle", "command", {"command": "land"}, timeout=0.3, id="late")
        vehicle = clients.make("vehicle", url=tls_server.tcp_url)
        ran = asyncio.Event()

        @vehicle.on("command")
        async def handle(_record: Record) -> None:
            ran.set()

        await vehicle.start()
        with pytest.raises(ReplyError) as answer:
            await gcs.request("vehicle", "command", {"command": "land"}, timeout=5, id="late")
        assert answer.value.error_code == "DEADLINE_EXPIRED"
        assert not ran.is_set()


async def test_a_clock_that_nobody_keeps_is_not_followed(
    clients: Clients, tls_server: TlsServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A clock left over from an earlier boot stands still: the client says so and counts on its own."""
    monkeypatch.setattr(clock_module, "GIVE_UP_AFTER", 0.2)
    keeper = await clients.open("keeper", url=tls_server.tcp_url, beside_bus=True)
    await keeper.call("HSET", keeper.keys.clock, "boot_id", "bbbbbbbbbbbb", "mono", 1)
    gcs = await clients.open("gcs", url=tls_server.tcp_url)
    assert (gcs.clock.boot_id, gcs.clock.offset) == (BOOT_ID, 0)
    assert "deadlines cannot be kept" in caplog.text


async def test_a_clock_of_this_machine_needs_no_following(clients: Clients, tls_server: TlsServer) -> None:
    """Over TCP to the own machine nothing is waited for."""
    keeper = await clients.open("keeper", url=tls_server.tcp_url, beside_bus=True)
    await keeper.call("HSET", keeper.keys.clock, "boot_id", BOOT_ID, "mono", 1)
    gcs = await clients.open("gcs", url=tls_server.tcp_url)
    assert (gcs.clock.boot_id, gcs.clock.offset) == (BOOT_ID, 0)
