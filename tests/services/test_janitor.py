"""The janitor as a whole: what it costs, and how it behaves when the server is away."""

from __future__ import annotations

import asyncio
import time

import pytest

from bus.clients import Clients, until
from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.options import BusOptions
from petalbus.daemon.services import Janitor
from petalbus.daemon.services.janitor import boot_keys
from services.raw import keeping

from support.servers import RealServer


async def test_idle_it_costs_far_less_than_one_percent(clients: Clients, bus: Bus) -> None:
    """Idle under 1 % of one core: with its default times, on a bus with forty streams."""
    for number in range(40):
        await bus.call("XADD", bus.keys.topic(f"t{number}"), "*", "x", 1)
    async with keeping(bus) as janitor:
        await until(lambda: janitor.statistics()["streams"] == 40, "the first pass is over")
        before, began = time.process_time(), time.monotonic()
        await asyncio.sleep(2.1)
        used = (time.process_time() - before) / (time.monotonic() - began)
    assert used < 0.01


async def test_it_goes_on_after_the_server_was_killed(own_server: RealServer, bus_name: str) -> None:
    options = BusOptions(send_timeout=0.5)
    async with (
        Bus(own_server.url, app="petalbus", bus=bus_name, options=options) as bus,
        keeping(bus, look_every=0.05) as janitor,
    ):
        await until(lambda: janitor.boot == 0, "the first look is over")
        await asyncio.to_thread(own_server.kill)
        await until(lambda: janitor.statistics()["last_error"], "it notices", seconds=20)
        await asyncio.to_thread(own_server.start)
        await until(lambda: janitor.statistics()["last_error"] is None, "it goes on", seconds=20)


async def test_each_boot_is_marked_once_before_anything_is_written_in_it(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replay tells boots apart by these marks, not by the wall clock (I9)."""
    first = (await bus.call("XADD", bus.keys.topic("t"), "*", "x", 1)).decode()
    await Janitor(bus).prepare()
    boots, marks = boot_keys(bus.keys)
    assert await bus.call("HVALS", boots) == [b"0"]
    assert (await bus.call("HGET", marks, f"0|{bus.keys.topic('t')}")).decode() == first
    second = (await bus.call("XADD", bus.keys.topic("t"), "*", "x", 1)).decode()
    await Janitor(bus).prepare()
    assert (await bus.call("HGET", marks, f"0|{bus.keys.topic('t')}")).decode() == first, "the same boot: marked once"
    monkeypatch.setattr("petalbus.daemon.services.janitor.BOOT_ID", "anotherboot1")
    janitor = Janitor(bus)
    await janitor.prepare()
    assert janitor.boot == 1
    assert (await bus.call("HGET", marks, f"1|{bus.keys.topic('t')}")).decode() == second


async def test_old_boots_are_forgotten(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("petalbus.daemon.services.janitor.KEEP_BOOTS", 3)
    await bus.call("XADD", bus.keys.topic("t"), "*", "x", 1)
    for number in range(12):
        monkeypatch.setattr("petalbus.daemon.services.janitor.BOOT_ID", f"boot{number}")
        await Janitor(bus).prepare()
    boots, marks = boot_keys(bus.keys)
    assert sorted(await bus.call("HVALS", boots)) == [b"10", b"11", b"9"]
    assert sorted(await bus.call("HKEYS", marks)) == sorted(
        mark.encode() for number in (9, 10, 11) for mark in (f"{number}|", f"{number}|{bus.keys.topic('t')}")
    )
