"""I9: the wall clock steps by ten years, forwards and backwards, under server and consumers. Nothing may
depend on it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bus.clients import Clients, until
from chaos.world import World, finals, lag, settled, stats, status_is, the_reply
from petalbus.daemon.server.find import ServerBinary
from petalbus.schemas.record import Record
from petalbus.schemas.vocabulary import ReplyKind, Status

from support.procs import Child, Children
from support.servers import RealServer, short_directory

pytestmark = pytest.mark.processes
YEARS = 10 * 365 * 86_400
LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))


class Clock:
    """The wall clock of processes that run under libfaketime; the file tells it how far to be off."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "faketime"
        self.step(0)
        self.environment = {
            "LD_PRELOAD": str(LIBRARIES[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def step(self, seconds: int) -> None:
        """Step to so many seconds from the true time."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+d}s\n")
        new.replace(self._file)  # at once: nobody reads half a number


@contextmanager
def server_with(clock: Clock, binary: ServerBinary, monkeypatch: pytest.MonkeyPatch) -> Iterator[RealServer]:
    """A server that lives in the time of ``clock``."""
    with short_directory() as directory:
        server = RealServer(directory, binary)
        with monkeypatch.context() as patch:
            for name, value in clock.environment.items():
                patch.setenv(name, value)
            server.start()
        try:
            yield server
        finally:
            server.close()


def off_by(server: RealServer) -> float:
    """How many seconds the server's wall clock is off."""
    seconds, _ = server.command("TIME")
    return float(seconds) - time.time()


@pytest.mark.skipif(not LIBRARIES, reason="libfaketime is not installed (Debian: apt-get install faketime)")
@pytest.mark.parametrize("step", [YEARS, -YEARS], ids=["forwards", "backwards"])
async def test_a_step_of_the_wall_clock_changes_nothing(
    server_binary: ServerBinary,
    children: Children,
    bus_name: str,
    tmp_path: Path,
    step: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """I9: deduplication, leases, takeover, deadlines, order and deliveries, before, over and after the step."""
    clock = Clock(tmp_path)
    with server_with(clock, server_binary, monkeypatch) as server:
        assert abs(off_by(server)) < 2
        clients = Clients(server.url, bus_name)
        world = World(server, clients, children, tmp_path)
        try:
            await _story(world, clock, step)
        finally:
            await clients.close()


async def _story(world: World, clock: Clock, step: int) -> None:
    gcs = await world.sender()
    first = await _member_in(world, clock)
    second = await _member_in(world, clock)
    for number in range(4):
        await gcs.send("app", "rerun", {"hold": True}, id=f"h{number}", key=f"k{number}", deadline=60)
    await until(lambda: len(world.effects()) == 4, "they run")
    once = await gcs.send("app", "rerun", {}, id="once")

    clock.step(step)
    await until(lambda: abs(off_by(world.server) - step) < 5, "the server's clock has stepped")
    assert (await gcs.send("app", "rerun", {}, id="once")).stream_id == once.stream_id
    assert (await gcs.request("app", "rerun", {}, id="r1", timeout=5)).data["n"] is None
    await asyncio.sleep(1.6)  # longer than a lease: nobody is taken for dead by it
    for member in (first, second):
        assert (await stats(member))["taken_over"] == 0
    applications = {one.app: (one.status, one.consumers) for one in await gcs.applications()}
    assert applications["app"] == ("online", 2)
    assert await gcs.status("h0") is Status.PROCESSING

    victim, survivor = await _who_runs(first, second, "h0")
    async with lag() as late:
        begun = time.monotonic()
        victim.kill()
        await survivor.line("^start h0 2", timeout=5)
        took = time.monotonic() - begun
    assert took < 2.0 + late[0], f"{took:.2f} s"

    clock.step(0)
    world.go()
    for number in range(4):
        assert (await the_reply(gcs, f"h{number}")).kind is ReplyKind.RESULT
        assert len(await finals(gcs, f"h{number}")) == 1
    await status_is(gcs, "once", Status.COMPLETED)
    await _order_holds(world)
    await settled(gcs)


async def _member_in(world: World, clock: Clock) -> Child:
    """A member that lives in the stepping time as well."""
    effects = str(world.effects_file)
    arguments = (world.clients.url, world.clients.bus, effects)
    child = await world.children.module("chaos.member", *arguments, environment=clock.environment)
    await child.line("^ready")
    return child


async def _who_runs(first: Child, second: Child, message_id: str) -> tuple[Child, Child]:
    runs_first = f"start {message_id} 1" in first.output
    assert runs_first or f"start {message_id} 1" in second.output
    return (first, second) if runs_first else (second, first)


async def _order_holds(world: World) -> None:
    """I3: what is sent after the clock went back lies behind what was sent before."""
    gcs = await world.sender("late")
    receipts = [await gcs.send("app", "rerun", {"n": number}, id=f"late{number}") for number in range(5)]
    order = [tuple(map(int, receipt.stream_id.split("-"))) for receipt in receipts]
    assert order == sorted(order)
    rows = await gcs.call("XRANGE", gcs.keys.inbox("app", 2), "-", "+")
    names = [Record.from_fields(fields).id for _, fields in rows]
    assert names[-5:] == [f"late{number}" for number in range(5)]
    for number in range(5):
        await status_is(gcs, f"late{number}", Status.COMPLETED)
