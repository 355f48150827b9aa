"""What stops an aircraft: its priority, and what a used messageId means. On a real bus, petals played by clients."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest

from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.options import BusOptions
from petalbus.handlers.mqtt import dispatch, words
from petalbus.schemas.vocabulary import Priority

from .test_commands import DEVICE, Desk, Taker
from support.servers import RealServer


@pytest.fixture
async def desk(server: RealServer, bus_name: str) -> AsyncIterator[Desk]:
    async with Bus(server.url, app=words.APP, bus=bus_name, options=BusOptions(stop_grace=0.2)) as link:
        await link.listen()
        yield Desk(server, bus_name, link)


async def until(condition: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, what
        await asyncio.sleep(0.005)


async def test_the_words_that_overtake_can_be_chosen(desk: Desk) -> None:
    """By the last word of a command; also while petals are being loaded."""
    desk.installed = None
    desk.urgent = frozenset({"abort"})
    async with desk.running(deadline=60):
        await desk.command("late/abort", "1")
        await desk.command("late/emergency_stop", "2")
        for name, level in (("1", Priority.CRITICAL), ("2", Priority.NORMAL)):
            async with asyncio.timeout(5):
                while (known := await desk.link.messages.known(f"{name}@{dispatch.UNDECIDED}")) is None:
                    await asyncio.sleep(0.005)
            assert known.priority == str(int(level))


@pytest.mark.parametrize("urgent_before", [False, True])
async def test_a_stop_that_was_offered_at_another_priority_runs_once(desk: Desk, *, urgent_before: bool) -> None:
    """I2: an earlier program, or other settings, offered it; the restart came before that was noted."""
    taker = Taker()
    message = {"command": "here/emergency_stop", "messageId": "1", "waitResponse": True}
    data = {"topic": f"{DEVICE}/command", "payload": message, "qos": 1}
    if urgent_before:
        desk.urgent = frozenset()
    async with desk.petal("here", taker.handle, commands=["here/emergency_stop", "here/go"]):
        before = Priority.CRITICAL if urgent_before else Priority.NORMAL
        await desk.link.send("here", words.COMMAND, data, id="1@here", key="1@here", priority=before)
        await desk.link.publish(words.TOPIC, words.MESSAGE, data, id=f"1@{words.TOPIC}")
        async with desk.running() as running:
            await until(lambda: running.repeated == 1, "it is recognised")
            await desk.ingress.received(desk.incoming(message))  # the broker brings it to the new program
            await desk.command("here/go", "last")
            await until(lambda: "last" in taker.got, "the next one runs")
            assert desk.ingress.duplicates == 1
    assert taker.got == ["1", "last"]
    assert not desk.answers, "nobody is told that it was refused"


async def test_another_command_with_a_used_message_id_is_refused(desk: Desk) -> None:
    """I2: not swallowed: kept, and answered with an answer of its own; a repetition with a new stamp is one."""
    taker = Taker()
    async with desk.petal("here", taker.handle, commands=["here/go", "here/come"]), desk.running():
        await desk.command("here/go", "1", timestamp=words.stamp(), data={"x": 1})
        await desk.command("here/go", "1", timestamp="later", data={"x": 1})
        assert (desk.ingress.duplicates, desk.answers) == (1, [])
        for more in ({"command": "here/come"}, {"command": "here/go", "data": {"x": 2}}):
            await desk.command(more.pop("command"), "1", **more)  # type: ignore[arg-type]  # a text
        await until(lambda: len(desk.answers) == 2, f"{desk.answers}")
        assert {data["error_code"] for _, data in desk.answers} == {"MESSAGE_ID_REUSED"}
        assert len({name for name in desk.names if name}) == 2, "each is an answer of its own, beside that to the first"
        await desk.command("here/go", "last")
        await until(lambda: "last" in taker.got, "the next one runs")
    assert taker.got == ["1", "last"]
    assert desk.ingress.invalid_messages == 2
    assert await desk.link.call("XLEN", desk.link.keys.topic(words.INVALID)) == 2


async def test_a_stop_with_a_used_message_id_runs(desk: Desk) -> None:
    """I2: a button whose messageId is always the same, two operators who both count from 1. The same message that
    comes again does not, also to a dispatch that was started anew.
    """
    got: list[Any] = []

    async def take(record: Any) -> None:
        got.append(record.data["payload"])

    stops = [{"timestamp": f"2026-01-31T12:00:0{number}Z"} for number in range(3)]
    async with desk.petal("here", take, commands=["here/go", "here/emergency_stop"]):
        for _ in range(2):
            async with desk.running():
                await desk.command("here/go", "1")
                for more in stops:
                    await desk.command("here/emergency_stop", "1", **more)
                await desk.command("here/go", "last")
                await until(lambda: any(one["messageId"] == "last" for one in got), "the next one runs")
    ran = [one.get("timestamp") for one in got if one["command"] == "here/emergency_stop"]
    assert sorted(ran) == [more["timestamp"] for more in stops]
    assert len(got) == 5
    assert not desk.ingress.invalid_messages


async def test_a_stop_with_a_used_message_id_is_answered_for(desk: Desk) -> None:
    """Its answer is not that of the first command, which had the same messageId."""
    async with desk.running():
        await desk.command("nobody/go", "1")
        await until(lambda: len(desk.answers) == 1, "the first is refused")
        await desk.command("nobody/emergency_stop", "1")
        await until(lambda: len(desk.answers) == 2, "so is the second")
    assert [data["error"] for _, data in desk.answers] == [
        "Unknown command: nobody/go",
        "Unknown command: nobody/emergency_stop",
    ]
    assert desk.names[0] is None
    assert desk.names[1]


async def test_a_stop_whose_id_belongs_to_another_app_runs(desk: Desk) -> None:
    """Somebody gave a command of this id on the command line."""
    taker = Taker()
    message = orjson.loads(desk.incoming({"command": "here/go", "messageId": "1"}).payload)
    data = {"topic": f"{DEVICE}/command", "payload": message, "qos": 1}
    async with Bus(desk.server.url, app="cli", bus=desk.bus_name) as other:
        await other.publish(words.TOPIC, words.MESSAGE, data, id=f"1@{words.TOPIC}")
    async with desk.petal("here", taker.handle, commands=["here/go", "here/emergency_stop"]), desk.running():
        await desk.command("here/emergency_stop", "1")
        await until(lambda: taker.got == ["1", "1"], f"both run: {taker.got}")
