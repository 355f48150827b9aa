"""Commands that come too late, that are not for us any more, or that cannot be a record: none holds up the next one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.errors import BusUnavailable, QueueFull
from petalbus.daemon.bus.options import BusOptions
from petalbus.daemon.config import Settings
from petalbus.daemon.runtime.mqtt import mqtt_options
from petalbus.handlers.mqtt import ours as ours_module
from petalbus.handlers.mqtt import words
from petalbus.handlers.mqtt.direct import DirectTransport
from petalbus.handlers.mqtt.handler import MqttHandler
from petalbus.handlers.mqtt.ingress import Ingress
from petalbus.handlers.mqtt.options import DirectOptions, MqttOptions
from petalbus.handlers.mqtt.transport import Identity, Incoming
from petalbus.schemas.record import Record
from petalbus.schemas.stamps import boot_clock_ns

from .test_link import BASE, Rig, Somebody, link
from support.mqtt_link import Store, until
from support.mqtt_link import link as transport_link
from support.odd_broker import OddBroker
from support.servers import RealServer

EDGE = f"{BASE}/command/edge"
POISON = rb'{"command": "a/b", "messageId": "\ud800", "waitResponse": true}'


def command(name: str, message_id: str, **more: Any) -> dict[str, Any]:
    return {"command": name, "messageId": message_id, "waitResponse": True, **more}


def ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()


@pytest.fixture
async def rig(server: RealServer, bus_name: str) -> AsyncIterator[Rig]:
    async with link(server, bus_name) as made:
        made.transport.connect()
        yield made


class Whole:
    """The handler on a connection of its own to a broker that misbehaves, and the answers that left."""

    def __init__(self, odd: OddBroker, handler: MqttHandler) -> None:
        self.odd = odd
        self.handler = handler

    @property
    def answers(self) -> dict[str, Any]:
        """Of the messageIds."""
        told = [orjson.loads(one.payload) for one in self.odd.published if one.topic.endswith("/response")]
        return {one["messageId"]: one for one in told}


@contextlib.asynccontextmanager
async def whole(server: RealServer, bus_name: str, odd: OddBroker) -> AsyncIterator[Whole]:
    quick = BusOptions(stop_grace=0.2)
    made = MqttHandler(
        lambda app: Bus(server.url, app=app, bus=bus_name, options=quick),
        DirectTransport(DirectOptions(host="127.0.0.1", port=odd.port, retry_first=0.05)),
        who=Somebody(),
    )
    async with made:
        running = asyncio.create_task(made.run(), name="link")
        await until(lambda: made.transport.state.connected, lambda: made.transport.state.reason)
        try:
            yield Whole(odd, made)
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running


async def test_no_message_whatever_stops_those_behind_it(server: RealServer, bus_name: str, odd: OddBroker) -> None:
    """S-194, I8: half a surrogate pair is JSON, and no text that could be answered to."""
    async with whole(server, bus_name, odd) as one:
        odd.deliver(EDGE, POISON, 1)
        for mid in range(2, 7):
            odd.deliver(EDGE, orjson.dumps(command("flight/emergency_stop", f"e{mid}")), mid)
        await until(lambda: len(odd.pubacks) >= 6, lambda: f"{odd.pubacks}")
        await until(lambda: len(one.answers) == 6, lambda: f"{one.answers}")
        assert odd.pubacks == [1, 2, 3, 4, 5, 6]
        assert {answer["error_code"] for answer in one.answers.values()} == {"INVALID_COMMAND", "UNKNOWN_COMMAND"}
        assert one.handler.ingress.statistics() == {"stored": 5, "duplicates": 0, "invalid": 1}


async def test_a_fault_of_ours_is_kept_and_not_tried_for_ever(odd: OddBroker) -> None:
    """What a message does to us, it does again; one that waits for the bus comes again."""

    class Faulty(Store):
        def __init__(self) -> None:
            super().__init__()
            self.kept: list[tuple[str, bytes, str]] = []

        async def received(self, message: Incoming) -> None:
            if message.payload == b"1":
                raise ZeroDivisionError("of ours")
            await super().received(message)

        async def invalid(self, topic: str, raw: bytes, reason: str) -> None:
            self.kept.append((topic, raw, reason))

    store = Faulty()
    async with transport_link(odd.port, ["in"], store=store) as running:
        await running.connected()
        for mid in (1, 2):
            odd.deliver("in", str(mid).encode(), mid)
        await until(lambda: odd.pubacks == [1, 2], lambda: f"{odd.pubacks}")
    assert store.kept == [("in", b"1", "ZeroDivisionError: of ours")]
    assert store.payloads == [b"2"]


async def test_an_answer_that_cannot_be_stored_keeps_no_message_back(server: RealServer, bus_name: str) -> None:
    """It is kept. While the bus is away the message comes again, and is answered then."""
    problem: list[Exception] = [BusUnavailable("away"), QueueFull("full")]

    async def respond(device: str, message_id: str, data: dict[str, Any], *, name: str | None = None) -> None:
        raise problem.pop(0)

    async with Bus(server.url, app=words.APP, bus=bus_name) as bus:
        ingress = Ingress(bus, MqttOptions(), respond=respond)
        message = Incoming(EDGE, b'{"messageId": "1", "waitResponse": true}')
        with pytest.raises(BusUnavailable):
            await ingress.received(message)
        await ingress.received(message)
        assert await bus.call("XLEN", bus.keys.topic(words.INVALID)) == 1
    assert not problem


async def test_what_has_expired_while_the_bus_stood_still_is_not_run(
    own_server: RealServer, bus_name: str, odd: OddBroker
) -> None:
    """A takeoff that its sender wants for one second must not be carried out after two."""
    async with whole(own_server, bus_name, odd) as one:
        own_server.freeze()
        odd.deliver(EDGE, orjson.dumps(command("get_status", "short")), 1, expiry=1)
        odd.deliver(EDGE, orjson.dumps(command("nobody/go", "long")), 2, expiry=3600)
        await asyncio.sleep(2.0)
        own_server.thaw()
        await until(lambda: len(one.answers) == 2, lambda: f"{one.answers}")
        assert one.answers["short"]["error_code"] == "DEADLINE_EXPIRED"
        assert one.answers["long"]["error_code"] == "UNKNOWN_COMMAND"


async def test_waiting_to_be_stored_counts(rig: Rig) -> None:
    """The bus was away for longer than a command may wait; also for what stops an aircraft: it may fly again."""
    came = boot_clock_ns() - round(121e9)
    for name in ("nobody/go", "nobody/emergency_stop"):
        await rig.handler.received(Incoming(EDGE, orjson.dumps(command(name, name)), arrived_ns=came))
    await rig.until(lambda: len(rig.bodies) == 2, "both are answered")
    assert {body["error_code"] for body in rig.bodies} == {"DEADLINE_EXPIRED"}


async def test_an_old_command_is_refused_without_being_asked_to(rig: Rig) -> None:
    """A broker keeps them for an hour. What stops an aircraft is not judged by two clocks; nor is what has no time, nor
    (S-237) the example of the manual, which no broker has held for years.
    """
    for number, (name, stamp) in enumerate(
        [
            ("nobody/takeoff", ago(3300)),
            ("nobody/emergency_stop", ago(3300)),
            ("nobody/new", ago(60)),
            ("nobody/ahead", ago(-3300)),
            ("nobody/local", "2020-01-31T12:00:00"),
            ("nobody/example", "2025-11-05T12:00:00Z"),
        ]
    ):
        await rig.transport.bring(EDGE, command(name, str(number), timestamp=stamp))
    await rig.transport.bring(EDGE, command("nobody/none", "6"))
    await rig.until(lambda: len(rig.bodies) == 7, "all are answered")
    told = {body["messageId"]: body["error_code"] for body in rig.bodies}
    assert told == {"0": "DEADLINE_EXPIRED", **dict.fromkeys("123456", "UNKNOWN_COMMAND")}


async def test_one_that_had_its_turn_is_not_called_too_late(server: RealServer, bus_name: str) -> None:
    """I2: the broker brings it again after a long outage: it was carried out, and nobody is told otherwise."""
    message = command("get_status", "1", timestamp=ago(3300))
    async with link(server, bus_name, options=MqttOptions(command_max_age=None)) as before:
        before.transport.connect()
        await before.transport.bring(EDGE, message)
        await before.until(lambda: before.bodies, "it is answered")
    async with link(server, bus_name) as after:
        after.transport.connect()
        await after.transport.bring(EDGE, message)
        assert after.handler.ingress.statistics() == {"stored": 0, "duplicates": 1, "invalid": 0}


async def test_the_organisation_of_before_commands_for_a_while(
    server: RealServer, bus_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S-207: what was under way is taken; later, and after a restart, it is a message like any other."""

    async def asked(one: Rig, organization: str, message_id: str) -> None:
        topic = f"org/{organization}/device/Instance-m1/command/edge"
        await one.transport.bring(topic, command("nobody/go", message_id))

    async with link(server, bus_name) as rig:
        rig.transport.connect()
        rig.who.become("ORG2")
        await rig.until(lambda: any("ORG2" in name for name in rig.transport.filters), "it is another one now")
        await asked(rig, "ORG1", "1")
        await rig.until(lambda: len(rig.bodies) == 1, "it was under way")
        monkeypatch.setattr(ours_module, "FORMER_S", 0.0)
        rig.who.become("ORG3")
        await rig.until(lambda: any("ORG3" in name for name in rig.transport.filters), "and another one")
        await asked(rig, "ORG2", "2")
        rig.who.become(None)
        await rig.until(lambda: not rig.transport.filters, "none")
        await asked(rig, "ORG3", "3")
        rig.who.become("ORG4")
        await rig.until(lambda: bool(rig.transport.filters), "the last one")
        await asked(rig, "ORG4", "4")
        await rig.until(lambda: len(rig.bodies) == 2, "that is ours")
    async with link(server, bus_name) as again:
        again.transport.connect()
        await asked(again, "ORG4", "5")
        await asked(again, "ORG1", "6")
        await again.until(lambda: len(again.bodies) == 1, "ORG1 is ours now")
        assert [body["messageId"] for body in (*rig.bodies, *again.bodies)] == ["1", "4", "6"]


async def test_what_was_for_us_when_it_came_is_carried_out(server: RealServer, bus_name: str) -> None:
    """A restart with another organisation: it was taken and acknowledged before."""
    data = {"topic": "org/OLD/device/Instance-m1/command", "payload": command("nobody/go", "1"), "qos": 1}
    async with Bus(server.url, app=words.APP, bus=bus_name) as bus:
        await bus.publish(words.TOPIC, words.MESSAGE, {**data, "ours": True}, id=f"1@{words.TOPIC}")
    async with link(server, bus_name) as rig:
        rig.transport.connect()
        await rig.until(lambda: rig.bodies, "it is answered")
        assert rig.transport.sent[0].message.topic == "org/OLD/device/Instance-m1/response"


async def test_a_device_that_does_not_know_itself_takes_nobody_s_commands(server: RealServer, bus_name: str) -> None:
    """It is connected by the name that its certificate has; a petal watches the whole fleet."""
    nobody = Somebody()
    nobody.now = Identity(None, None, "thing")
    quick = BusOptions(stop_grace=0.2)
    from support.link_double import HeldTransport  # only here

    transport = HeldTransport()
    made = MqttHandler(lambda app: Bus(server.url, app=app, bus=bus_name, options=quick), transport, who=nobody)
    async with made, Bus(server.url, app="petal", bus=bus_name) as petal:
        running = asyncio.create_task(made.run(), name="link")
        await asyncio.sleep(0.05)
        transport.connect()
        await transport.bring("org/ORG1/device/Instance-other/command", command("nobody/go", "1"))
        nobody.become("ORG1")
        await until(lambda: bool(transport.filters), lambda: "it is known")
        await transport.bring(EDGE, command("nobody/go", "1"))
        await until(lambda: bool(transport.sent), lambda: "ours is answered, though another's had its messageId")
        rows = await petal.call("XRANGE", petal.keys.topic(words.TOPIC), "-", "+")
        assert [Record.from_fields(row[1]).data["topic"].split("/")[3] for row in rows] == [
            "Instance-other",
            "Instance-m1",
        ]
        await asyncio.sleep(0.1)
        assert len(transport.sent) == 1
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


@pytest.mark.parametrize(
    ("said", "refused"),
    [(None, (200, 3500)), (0.0, ()), (30.0, (60, 200, 3500, 90_000)), (900.0, (3500, 90_000))],
)
async def test_the_age_can_be_chosen(
    server: RealServer, bus_name: str, tmp_path: Path, said: float | None, refused: Any
) -> None:
    """By the settings: where it was said that two clocks may be compared every age counts."""
    settings = Settings(data=tmp_path, **({} if said is None else {"mqtt_command_max_age": said}))
    async with Bus(server.url, app=words.APP, bus=bus_name) as bus:

        async def respond(device: str, message_id: str, data: dict[str, Any], *, name: str | None = None) -> None:
            told.append(int(message_id))

        told: list[int] = []
        ingress = Ingress(bus, mqtt_options(settings), respond=respond)
        for age in (10, 60, 200, 3500, 90_000):
            message = command("a/b", str(age), timestamp=ago(age))
            await ingress.received(Incoming(EDGE, orjson.dumps(message)))
    assert tuple(told) == refused


async def test_a_refusal_of_another_is_no_answer_to_the_first(server: RealServer, bus_name: str) -> None:
    """S-243: both have the same messageId. Who waits for the first one hears how that ended, too."""
    options = MqttOptions(command_deadline=1.0)
    async with link(server, bus_name, options=options, installed=lambda: ("late",)) as rig:
        rig.transport.connect()
        await rig.transport.bring(EDGE, command("late/go", "1"))
        await rig.transport.bring(EDGE, command("late/come", "1"))
        await rig.until(lambda: len(rig.bodies) == 2, "both are answered")
        assert [body["error_code"] for body in rig.bodies] == ["MESSAGE_ID_REUSED", "DEADLINE_EXPIRED"]
        assert rig.bodies[0]["messageId"] == rig.bodies[1]["messageId"] == "1"


async def test_two_clocks_are_not_compared_where_nothing_can_have_waited(rig: Rig) -> None:
    """S-237: five minutes of difference. What came with the flood after a connection, or was sent before it, may be
    old.
    """
    for number, (up, age) in enumerate(
        [(1000.0, 300), (float("inf"), 3300), (1000.0, 1500), (30.0, 300), (200.0, 300)]
    ):
        message = command("nobody/land", str(number), timestamp=ago(age))
        await rig.handler.received(Incoming(EDGE, orjson.dumps(message), link_s=up))
    await rig.until(lambda: len(rig.bodies) == 5, "all are answered")
    told = {body["messageId"]: body["error_code"] for body in rig.bodies}
    assert told == {**dict.fromkeys("01", "UNKNOWN_COMMAND"), **dict.fromkeys("234", "DEADLINE_EXPIRED")}


async def test_the_link_knows_since_when_it_brings_all(odd: OddBroker) -> None:
    """A new session holds nothing; one that was kept may have until now; and what waits for the bus holds back more."""
    store = Store()
    async with transport_link(odd.port, ["in"], store=store) as running:
        await running.connected()
        odd.deliver("in", b"1", 1)
        await until(lambda: len(store.messages) == 1, lambda: "it came")
        odd.session_present = True
        odd.drop()
        await until(lambda: len(odd.greetings) == 2 and running.transport.state.connected, lambda: "again")
        odd.deliver("in", b"2", 2)
        await until(lambda: len(store.messages) == 2, lambda: "it came")
        await asyncio.sleep(0.3)
        odd.deliver("in", b"3", 3)
        await until(lambda: len(store.messages) == 3, lambda: "it came")
        store.failing = True
        odd.deliver("in", b"4", 4)
        await until(lambda: store.tries == 4, lambda: "it was tried")
        await asyncio.sleep(0.01)
        odd.deliver("in", b"5", 5)
        await asyncio.sleep(0.05)
        store.failing = False
        await until(lambda: len(store.messages) == 5, lambda: "they came")
    up = [message.link_s for message in store.messages]
    assert up[0] == float("inf")
    assert up[1] is not None
    assert up[2] is not None
    assert up[4] is not None
    assert up[4] < 0.3 <= up[2] < 15


@pytest.mark.parametrize("before", [None, "ORG1"])
async def test_while_none_is_known_the_last_one_commands(server: RealServer, bus_name: str, before: str | None) -> None:
    """S-207: a session that was kept brings what another organisation, which was ours once, has asked for."""
    if before is not None:
        async with link(server, bus_name):
            """ORG1 is known."""
    async with link(server, bus_name, unknown=True) as rig:
        await rig.until(lambda: rig.transport._receiver is not None, "it runs")
        rig.transport.connect()
        for organization in ("OLD", "ORG1"):
            topic = f"org/{organization}/device/Instance-m1/command/edge"
            await rig.transport.bring(topic, command("nobody/go", organization))
        await rig.until(lambda: rig.bodies, "it is answered")
        rig.who.become("NEW")
        await rig.until(lambda: any("NEW" in name for name in rig.transport.filters), "it is known")
        await rig.transport.bring("org/NEW/device/Instance-m1/command", command("nobody/go", "2"))
        expected = [*(["OLD"] if before is None else []), "ORG1", "2"]
        await rig.until(lambda: len(rig.bodies) >= len(expected), f"{rig.bodies}")
        assert [body["messageId"] for body in rig.bodies] == expected
        assert await rig.petal.call("GET", words.organization_key(rig.petal.keys)) == b"NEW"
