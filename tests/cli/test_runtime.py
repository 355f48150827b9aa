"""The inside of `petalbus up`: parts that are kept running, and a report that never blocks."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from petalbus.daemon.bus.errors import BusUnavailable
from petalbus.daemon.cli.up import words
from petalbus.daemon.runtime import report as report_module
from petalbus.daemon.runtime.report import Report
from petalbus.daemon.runtime.supervisor import Kept, State, Supervisor, explained


class Told(Report):
    """A report that keeps its events."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def event(self, event: str, **details: Any) -> None:
        self.events.append({"event": event, **details})


async def test_a_part_that_fails_is_started_again_and_the_others_go_on() -> None:
    told = Told()
    starts: list[str] = []
    steady_up = asyncio.Event()

    async def shaky(kept: Kept) -> None:
        starts.append(kept.name)
        if len(starts) < 3:
            raise ConnectionError(f"failure {len(starts)}")
        kept.up(lambda: {"starts": len(starts)})
        await asyncio.Event().wait()

    async def steady(kept: Kept) -> None:
        kept.up()
        steady_up.set()
        await asyncio.Event().wait()

    async with asyncio.TaskGroup() as tasks:
        supervisor = Supervisor(tasks, told, stop_timeout=1)
        kept = supervisor.start("shaky", shaky, stops=1)
        supervisor.start("steady", steady, stops=0)
        async with asyncio.timeout(5):
            await kept.is_up.wait()
            await steady_up.wait()
        assert supervisor.describe()["shaky"] == {
            "state": "running",
            "restarts": 2,
            "last_error": "ConnectionError: failure 2",
            "statistics": {"starts": 3},
        }
        assert supervisor.describe()["steady"]["restarts"] == 0
        await supervisor.stop()
    assert [(event["event"], event["part"], event["error"]) for event in told.events] == [
        ("part_failed", "shaky", "ConnectionError: failure 1"),
        ("part_failed", "shaky", "ConnectionError: failure 2"),
    ]
    first, second = (event["retry_in"] for event in told.events)
    assert second == 2 * first
    assert kept.state is State.STOPPED
    assert supervisor.abandoned() == []


async def test_a_part_that_ends_by_itself_is_started_again() -> None:
    told = Told()
    again = asyncio.Event()

    async def short(_kept: Kept) -> None:
        if told.events:
            again.set()

    async with asyncio.TaskGroup() as tasks:
        supervisor = Supervisor(tasks, told, stop_timeout=1)
        supervisor.start("short", short, stops=0)
        async with asyncio.timeout(5):
            await again.wait()
        await supervisor.stop()
    assert told.events[0]["error"] == "it ended by itself"


async def test_parts_stop_in_the_order_declared_one_after_the_other() -> None:
    order: list[str] = []

    async def part(kept: Kept) -> None:
        try:
            kept.up()
            await asyncio.Event().wait()
        finally:
            order.append(f"{kept.name} begins")
            await asyncio.sleep(0)
            order.append(f"{kept.name} ends")

    async with asyncio.TaskGroup() as tasks:
        supervisor = Supervisor(tasks, Told(), stop_timeout=1)
        kept = [supervisor.start(name, part, stops=at) for name, at in (("last", 2), ("first", 0), ("middle", 1))]
        for one in kept:
            await one.is_up.wait()
        await supervisor.stop()
    assert order == [f"{name} {what}" for name in ("first", "middle", "last") for what in ("begins", "ends")]


async def test_a_part_that_does_not_stop_is_left_behind_after_the_time_allowed() -> None:
    release = asyncio.Event()

    async def stubborn(kept: Kept) -> None:
        kept.up()
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    async with asyncio.TaskGroup() as tasks:
        supervisor = Supervisor(tasks, Told(), stop_timeout=0.05)
        kept = supervisor.start("stubborn", stubborn, stops=0)
        await kept.is_up.wait()
        began = time.monotonic()
        await supervisor.stop()
        assert time.monotonic() - began < 2
        assert supervisor.abandoned() == ["stubborn"]
        release.set()


def test_an_error_is_explained_in_one_line() -> None:
    assert explained(BusUnavailable("the server\n is away")) == "the server is away"
    assert explained(KeyError("x")) == "KeyError: 'x'"
    assert explained(ValueError()) == "ValueError"
    group = ExceptionGroup("several", [ValueError("one"), ExceptionGroup("more", [OSError("two"), ValueError("one")])])
    assert explained(group) == "ValueError: one; OSError: two"


@pytest.fixture(autouse=True)
def _log_level() -> Iterator[None]:
    before = logging.getLogger().level
    yield
    logging.getLogger().setLevel(before)


def test_a_report_that_nobody_reads_blocks_nobody_and_counts_what_it_drops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_module, "_FLUSH_SECONDS", 0.05)
    reading, writing = os.pipe()
    nobody_reads_this = os.fdopen(writing, "w", buffering=1)  # closed below, with the error that belongs to it
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", nobody_reads_this)
        told = Report(level="info", as_json=True, words=words)
    began = time.monotonic()
    for number in range(30_000):
        told.event("part_failed", part="sim", error="x" * 50, retry_in=number, restarts=number)
    assert told.dropped > 1000
    told.close()
    assert time.monotonic() - began < 5
    os.close(reading)  # now the thread's write fails, and it goes on to the end
    told._lines.put(None)
    told._thread.join(10)
    assert not told._thread.is_alive()
    with pytest.raises(BrokenPipeError):
        nobody_reads_this.close()


def test_a_report_writes_events_and_log_lines_before_it_is_closed(capfd: pytest.CaptureFixture[str]) -> None:
    told = Report(level="info", as_json=False, words=words)
    told.event("stopping", signal="SIGTERM")
    told.event("part_failed", part="sim")  # for people the log has it
    logging.getLogger("petalbus.test").warning("%s is %d", "six", 6)
    logging.getLogger("petalbus.test").debug("not shown")
    told.close()
    out, err = capfd.readouterr()
    assert out == "stopping (SIGTERM)\n"
    (line,) = err.splitlines()
    assert "six is 6" in line
    assert "petalbus.test" in line
    logging.getLogger("petalbus.test").warning("after the end")
    assert capfd.readouterr().err == ""
