"""Two messages under one messageId, while the first of them is still being carried out. On a real bus."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from petalbus.handlers.mqtt import words
from petalbus.handlers.mqtt.options import MqttOptions
from petalbus.handlers.mqtt.waiting import Asked
from petalbus.schemas.stamps import boot_clock_ns

from .test_link import BASE, Rig, link
from support.servers import RealServer

EDGE = f"{BASE}/command/edge"
GOTO = {"command": "flight/goto", "messageId": "1", "waitResponse": True, "data": {"x": 1, "t": "10:00:00"}}


@pytest.fixture
async def rig(server: RealServer, bus_name: str) -> AsyncIterator[Rig]:
    """Petal ``flight`` is expected and never comes."""
    options = MqttOptions(command_deadline=1.0)
    async with link(server, bus_name, options=options, installed=lambda: ("flight",)) as made:
        made.transport.connect()
        yield made


def told(rig: Rig) -> list[tuple[str, str]]:
    return [(body["error_code"], body["message"].split(" within ")[0]) for body in rig.bodies]


async def test_a_repetition_is_no_error_of_the_command_that_runs(rig: Rig) -> None:
    """I2, S-243: whatever a sender writes anew when it sends once more: one answer, that of the command."""
    body = GOTO["data"]
    for one in (
        GOTO,
        {**GOTO, "data": {"t": "10:00:00", "x": 1.0, "timestamp": "later"}},
        {**GOTO, "messageId": 1},
        {**{name: value for name, value in GOTO.items() if name != "data"}, "payload": body},
        {**GOTO, "payload": body},
        {**GOTO, "retry": 1},
    ):
        await rig.transport.bring(EDGE, one)
    assert rig.handler.ingress.statistics() == {"stored": 1, "duplicates": 5, "invalid": 0}
    await rig.until(lambda: len(rig.handler.dispatch.waiting) == 1, "it is watched")
    for one in ({**GOTO, "data": {"x": 1, "t": "10:00:01"}}, {**GOTO, "more": 1}, {**GOTO, "data": None}):
        await rig.transport.bring(EDGE, one)
    assert rig.handler.ingress.invalid_messages == 3, "they are kept"
    await rig.until(lambda: rig.bodies, "it is answered")
    assert [code for code, _ in told(rig)] == ["DEADLINE_EXPIRED"]
    await rig.transport.bring(EDGE, {**GOTO, "data": {"x": 2}})
    await rig.until(lambda: len(rig.bodies) == 2, "the first is answered: that is another command")
    assert told(rig)[1][0] == "MESSAGE_ID_REUSED"


@pytest.mark.parametrize("stop", ["flight/emergency_stop", "nobody/emergency_stop"])
@pytest.mark.parametrize("reverse", [False, True])
async def test_each_of_two_commands_under_one_message_id_is_answered(rig: Rig, stop: str, *, reverse: bool) -> None:
    """S-243: a stop under the messageId of a command that runs: neither takes the other's answer from it."""
    two: list[dict[str, Any]] = [GOTO, {"command": stop, "messageId": "1", "waitResponse": True}]
    if reverse:
        two = [two[1], {**two[0], "command": "flight/emergency_stop", "data": {"again": True}}]
    for one in two:
        await rig.transport.bring(EDGE, one)
    await rig.until(lambda: len(rig.bodies) == 2, f"{rig.bodies}")
    assert len({text for _, text in told(rig)}) == (2 if two[0]["command"] != two[1]["command"] else 1)
    assert {code for code, _ in told(rig)} <= {"DEADLINE_EXPIRED", "UNKNOWN_COMMAND"}
    assert not len(rig.handler.dispatch.waiting)


async def test_what_an_earlier_program_noted_is_answered(server: RealServer, bus_name: str) -> None:
    """It noted every command by its messageId, also where it had a name."""
    asked = Asked("1", BASE, "flight/stop", boot_clock_ns(), 0.1, offers=["none@flight"], name="name")
    raw = orjson.loads(asked.encode())
    del raw["message_id"]
    async with link(server, bus_name) as first:
        key = words.waiting_key(first.petal.keys)
        await first.petal.call("HSET", key, "1", orjson.dumps(raw))
    async with link(server, bus_name) as rig:
        rig.transport.connect()
        await rig.until(lambda: rig.bodies, "it is answered")
        assert rig.bodies[0]["messageId"] == "1"
        await rig.until(lambda: not len(rig.handler.dispatch.waiting), "nobody waits")
        for _ in range(100):
            if not (left := await rig.petal.call("HKEYS", key)):
                break
        assert not left
