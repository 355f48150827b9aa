"""Faults: what is injected happens on the wire, is listed, follows from the seed, and the bus keeps its promises."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import Any

import pytest

from petalbus import BusError, Record, ReplyError
from petalbus.petals import Petal, on
from petalbus.testing import Faults, MemoryBus, PetalHarness, TestBus

pytest_plugins = ["petalbus.petals.testing.plugin"]

RAN: Counter[int] = Counter()
SHUT_DOWN: list[str] = []


class Worker(Petal):
    name = "worker"

    async def async_startup(self) -> None:
        self.ticking = asyncio.create_task(self._tick(), name="worker.tick")

    async def async_shutdown(self) -> None:
        SHUT_DOWN.append("in order")
        self.ticking.cancel()

    async def _tick(self) -> None:
        await asyncio.Event().wait()

    @on("work", redelivery="rerun")
    async def work(self, record: Record) -> dict[str, Any]:
        RAN[record.data["n"]] += 1
        return {"n": record.data["n"]}

    @on("tell", redelivery="rerun", max_attempts=9)
    async def tell(self, record: Record) -> dict[str, Any]:
        RAN[record.data["n"]] += 1
        await self.bus.publish("news", "told", {"n": record.data["n"]})
        return {}

    @on("launch")
    async def launch(self, record: Record) -> dict[str, Any]:
        RAN[record.data["n"]] += 1
        return {"launched": True}


@pytest.fixture(autouse=True)
def clean() -> None:
    RAN.clear()
    SHUT_DOWN.clear()


async def run(bus: TestBus, faults: Faults, *, count: int = 12, type: str = "work") -> PetalHarness[Worker]:
    """Send so many records one after the other; each must be answered exactly once."""
    async with PetalHarness(Worker, bus=bus, faults=faults) as h:
        for n in range(count):
            receipt = await h.send(type, {"n": n})
            assert (await h.expect_reply(receipt, within=15)).data["n" if type == "work" else "launched"] in (n, True)
        await h.catch_up()
        replies = Counter(one.record.reply_to for one in h.records if one.place == "replies:tester")
        assert set(replies.values()) == {1}
        assert len(replies) == count
    return h


async def test_i2_every_fault_at_once_and_each_record_has_one_reply(each_bus: TestBus) -> None:
    h = await run(each_bus, Faults(seed=7, drop=0.2, delay=(0.0, 0.004), duplicate=0.3, crash=0.15))
    assert {fault.kind for fault in h.faults.log} == {"drop", "delay", "duplicate", "crash"}
    assert h.crashes == h.faults.count("crash") >= 1
    assert set(RAN) == set(range(12))


async def test_the_same_seed_breaks_the_same_things(each_bus: TestBus) -> None:
    given: dict[str, Any] = {"drop": 0.2, "duplicate": 0.3, "crash": 0.1, "delay": (0.0, 0.002)}
    logs = []
    for seed in (3, 3, 4):
        h = await run(each_bus, Faults(seed=seed, **given), count=8)
        logs.append(sorted(map(str, h.faults.log)))
    assert logs[0] == logs[1]
    assert logs[0] != logs[2]


async def test_i1_a_lost_answer_is_a_cut_connection_and_loses_nothing(each_bus: TestBus) -> None:
    h = await run(each_bus, Faults(seed=1, drop=0.5))
    lost = [fault for fault in h.faults.log if fault.kind == "drop"]
    assert len(lost) >= 3
    assert any("the answer to commit of #" in str(fault) for fault in lost)
    assert h.crashes == 0
    assert set(RAN.values()) == {1}, "an answer that is lost on the wire repeats no work"


async def test_what_the_petal_publishes_may_have_an_unknown_outcome(each_bus: TestBus) -> None:
    """A topic is not deduplicated: the handler sees OutcomeUnknown, runs again, and the record is there twice."""
    async with PetalHarness(Worker, bus=each_bus, faults=Faults(seed=5, drop=0.3)) as h:
        for n in range(8):
            await h.expect_reply(await h.send("tell", {"n": n}), within=15)
        await h.catch_up()
        told = Counter(one.record.data["n"] for one in h.records if one.place == "topic:news")
        lost = [fault for fault in h.faults.log if fault.subject == "publish to topic:news"]
    assert len(lost) >= 1
    assert sum(told.values()) == 8 + len(lost)
    assert told == RAN


async def test_delays_hold_answers_up(each_bus: TestBus) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    h = await run(each_bus, Faults(seed=2, delay=(0.02, 0.03)), count=5)
    late = [float(fault.detail.split()[1]) for fault in h.faults.log]
    assert {fault.kind for fault in h.faults.log} == {"delay"}
    assert len(late) >= 5
    assert all(0.02 <= seconds <= 0.03 for seconds in late)
    assert loop.time() - began > 5 * 0.02


async def test_i2_a_duplicate_has_no_second_effect(each_bus: TestBus) -> None:
    h = await run(each_bus, Faults(duplicate=1.0), count=4)
    assert h.faults.count("duplicate") == 4
    assert set(RAN.values()) == {1}


async def test_i2_a_crash_with_report_is_told_and_not_run_again(each_bus: TestBus) -> None:
    """Every record kills the petal once. Half of them before the handler began, half after it had ended."""
    outcomes: dict[int, str] = {}
    async with PetalHarness(Worker, bus=each_bus, faults=Faults(seed=2, crash=1.0)) as h:
        for n in range(4):
            try:
                await h.request("launch", {"n": n}, timeout=15)
                outcomes[n] = "launched"
            except ReplyError as error:
                outcomes[n] = error.error_code
        moments = {fault.subject: fault.detail for fault in h.faults.log if fault.kind == "crash"}
        first = h.petal
    assert h.crashes == 4
    assert {"its handler began" in moment for moment in moments.values()} == {True, False}
    for n in range(4):
        after = "before it was acknowledged" in moments[f"#{n + 1}"]
        assert outcomes[n] == ("OUTCOME_UNKNOWN" if after else "launched"), (n, moments)
        assert RAN[n] == 1
    assert SHUT_DOWN == ["in order"], "a crash is no shutdown: only the last life has one"
    assert first.ticking.cancelled()


async def test_a_crash_with_rerun_runs_again_and_answers_once(each_bus: TestBus) -> None:
    h = await run(each_bus, Faults(seed=2, crash=1.0), count=3)
    assert h.crashes == 3
    after = sum("before it was acknowledged" in fault.detail for fault in h.faults.log)
    assert sum(RAN.values()) == 3 + after


async def test_a_crash_by_hand_leaves_nothing_of_the_old_life(each_bus: TestBus) -> None:
    async with PetalHarness(Worker, bus=each_bus) as h:
        old = h.petal
        await h.crash()
        assert h.petal is not old
        assert old.ticking.cancelled()
        assert (await h.request("work", {"n": 1})).data == {"n": 1}
        with pytest.raises((BusError, TimeoutError)):
            async with asyncio.timeout(0.2):
                await old.bus.call("PING")
    assert SHUT_DOWN == ["in order"]


async def test_a_task_that_refuses_to_end_does_not_hold_the_crash_up(
    memory_bus: MemoryBus, caplog: pytest.LogCaptureFixture
) -> None:
    class Stubborn(Petal):
        name = "stubborn"

        async def async_startup(self) -> None:
            self.gate = asyncio.Event()
            self.refusing = asyncio.create_task(self.refuse(), name="stubborn.refuse")

        async def refuse(self) -> None:
            while not self.gate.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await self.gate.wait()

    async with PetalHarness(Stubborn, bus=memory_bus) as h:
        old = h.petal
        await h.crash()
        assert h.petal is not old
        assert "1 tasks of a crashed petal refuse to end" in caplog.text
        h.petal.gate.set()
        old.gate.set()
        await asyncio.wait([old.refusing, h.petal.refusing], timeout=5)


async def test_a_successor_that_cannot_start_is_told(each_bus: TestBus) -> None:
    lives: list[int] = []

    class Once(Petal):
        name = "once"

        async def async_startup(self) -> None:
            lives.append(1)
            if len(lives) > 1:
                raise OSError("the camera is held by somebody")

        @on("work", redelivery="rerun")
        async def work(self, record: Record) -> None:
            return None

    with pytest.raises(RuntimeError, match="'once' could not be started again: the camera is held"):
        async with PetalHarness(Once, bus=each_bus, faults=Faults(crash=1.0)) as h:
            await h.send("work", {})
            for _ in range(500):
                await asyncio.sleep(0.01)
                await h.catch_up()
            raise AssertionError("it was never told")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"drop": 1.5}, "drop=1.5 is no probability"),
        ({"crash": -0.1}, "crash=-0.1"),
        ({"delay": (0.5, 0.1)}, "least, most"),
        ({"delay": (0.0, 60.0)}, "0 to 10"),
    ],
)
def test_faults_that_make_no_sense_are_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Faults(**wrong)
