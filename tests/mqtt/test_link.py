"""The whole link on a real bus, with the broker in the test's hand: what comes in, what goes out, in which order."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.options import BusOptions
from petalbus.handlers.mqtt import words
from petalbus.handlers.mqtt.handler import MqttHandler
from petalbus.handlers.mqtt.options import EgressOptions, MqttOptions
from petalbus.handlers.mqtt.transport import Identity, LinkLost, PublishRefused
from petalbus.schemas.record import Record
from petalbus.schemas.vocabulary import Priority, Status

from support.link_double import HeldTransport
from support.servers import RealServer

BASE = "org/ORG1/device/Instance-m1"


class Somebody:
    """Who we are, as the test says."""

    def __init__(self) -> None:
        self.now = Identity("ORG1", "Instance-m1")
        self._changed = asyncio.Event()

    def identity(self) -> Identity:
        return self.now

    async def changed(self) -> None:
        await self._changed.wait()
        self._changed.clear()

    def become(self, organization: str | None) -> None:
        self.now = Identity(organization, "Instance-m1")
        self._changed.set()


class Rig:
    """The link, and a client that sends as a petal does."""

    def __init__(self, transport: HeldTransport, who: Somebody, handler: MqttHandler, petal: Bus) -> None:
        self.transport = transport
        self.who = who
        self.handler = handler
        self.petal = petal

    async def publish(self, where: str, payload: Any, *, qos: int = 1, **more: Any) -> str:
        """As the proxy stores it; the record's id."""
        data = {("topic" if "/" in where else "suffix"): where, "payload": payload, "qos": qos}
        if "/" not in where:
            data["organization"] = more.pop("organization", "ORG1")
        app = words.APP if qos else words.TELEMETRY
        return (await self.petal.send(app, words.PUBLISH, data, **more)).id

    async def until(self, condition: Callable[[], Any], what: str) -> None:
        async with asyncio.timeout(8):
            while not condition():
                await asyncio.sleep(0.005)
        assert condition(), what

    async def settled(self, message_id: str, status: Status) -> None:
        async with asyncio.timeout(8):
            while await self.petal.status(message_id) is not status:
                await asyncio.sleep(0.005)

    @property
    def bodies(self) -> list[Any]:
        return [one.body for one in self.transport.sent]


@contextlib.asynccontextmanager
async def link(
    server: RealServer, bus_name: str, *, options: MqttOptions | None = None, unknown: bool = False, **more: Any
) -> AsyncIterator[Rig]:
    """``unknown``: the organisation is not known at the start."""
    transport, who = HeldTransport(), Somebody()
    if unknown:
        who.become(None)
    quick = BusOptions(stop_grace=0.2)
    handler = MqttHandler(
        lambda app: Bus(server.url, app=app, bus=bus_name, options=quick),
        transport,
        who=who,
        options=options or MqttOptions(),
        **more,
    )
    async with Bus(server.url, app="petal", bus=bus_name) as petal, handler:
        running = asyncio.create_task(handler.run(), name="link")
        rig = Rig(transport, who, handler, petal)
        await rig.until(lambda: transport.filters or who.now.organization is None, "it says what is wanted")
        try:
            yield rig
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running


@pytest.fixture
async def rig(server: RealServer, bus_name: str) -> AsyncIterator[Rig]:
    async with link(server, bus_name) as made:
        yield made


async def test_the_device_topics_are_wanted_at_the_start(rig: Rig) -> None:
    """S-181, S-182, S-209, S-213, S-217, C-06: commands on both topics, and responses."""
    assert rig.transport.filters == {f"{BASE}/command/edge": 1, f"{BASE}/command": 1, f"{BASE}/response": 1}


async def test_a_message_is_a_record_before_it_is_acknowledged(rig: Rig) -> None:
    """S-185, I1: `received` returns when the record is in the stream."""
    rig.transport.connect()
    await rig.transport.bring(f"{BASE}/response", {"messageId": "9", "status": "success"})
    rows = await rig.petal.call("XRANGE", rig.petal.keys.topic(words.TOPIC), "-", "+")
    record = Record.from_fields(rows[-1][1])
    assert (record.type, record.data["payload"]["messageId"]) == (words.MESSAGE, "9")


async def test_a_repeated_message_is_one_record(rig: Rig) -> None:
    """S-211, I2: by its messageId, also after a restart of the link; answers to one command are told apart."""
    rig.transport.connect()
    for _ in range(2):
        await rig.transport.bring(f"{BASE}/command", {"messageId": "7", "command": "petal/go"})
        await rig.transport.bring(f"{BASE}/response", {"messageId": "7", "status": "one"})
        await rig.transport.bring(f"{BASE}/response", {"messageId": "7", "status": "two"})
    assert await rig.petal.call("XLEN", rig.petal.keys.topic(words.TOPIC)) == 3
    assert rig.handler.ingress.statistics() == {"stored": 3, "duplicates": 3, "invalid": 0}


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b'{"messageId": "5", "waitResponse": true, "command": "a/b"', "no JSON"),
        (b'{"messageId": "5", "waitResponse": true}', "member command"),
        (b'["messageId"]', "JSON object"),
        (b'{"command": "a/b", "messageId": {}}', "messageId"),
        (b"\xff\xfe", "no JSON"),
        (b"x" * 300_000, "300000 bytes"),
        (b"[" * 200_000, "no JSON"),
    ],
)
async def test_what_is_no_command_is_kept_and_answered(rig: Rig, raw: bytes, reason: str) -> None:
    """S-194, C-13, I8: never a crash, never dropped: it is in mqtt.invalid; who can be answered is."""
    rig.transport.connect()
    await rig.transport.bring(f"{BASE}/command/edge", raw)
    rows = await rig.petal.call("XRANGE", rig.petal.keys.topic(words.INVALID), "-", "+")
    kept = Record.from_fields(rows[-1][1]).data
    assert reason in kept["reason"]
    assert (kept["bytes"], kept["topic"]) == (len(raw), f"{BASE}/command/edge")
    if b"waitResponse" in raw:
        await rig.until(lambda: rig.bodies, "an error response")
        answer = rig.bodies[-1]
        assert (answer["messageId"], answer["success"], answer["status"]) == ("5", False, "error")
        assert answer["error_code"] == "INVALID_COMMAND"
    await rig.transport.bring(f"{BASE}/command/edge", {"messageId": "next", "command": "a/b"})
    assert rig.handler.ingress.stored == 1


async def test_another_device_s_command_is_only_a_message(rig: Rig) -> None:
    """A petal may listen to what others are told; it is not carried out here."""
    rig.transport.connect()
    other = "org/ORG1/device/Instance-other/command"
    await rig.transport.bring(other, {"messageId": "1", "command": "get_status", "waitResponse": True})
    await rig.transport.bring(f"{BASE}/command", {"messageId": "2", "command": "none/x", "waitResponse": True})
    await rig.until(lambda: rig.bodies, "an answer to ours")
    assert [body["messageId"] for body in rig.bodies] == ["2"]


async def test_a_retained_command_is_refused(rig: Rig) -> None:
    """It would be carried out at every connection."""
    rig.transport.connect()
    from petalbus.handlers.mqtt.transport import Incoming  # only here

    raw = b'{"messageId": "1", "command": "get_status", "waitResponse": true}'
    await rig.handler.received(Incoming(f"{BASE}/command", raw, retain=True))
    await rig.until(lambda: rig.bodies, "a refusal")
    assert "retained" in rig.bodies[0]["error"]


async def test_messages_leave_in_order_and_are_settled_when_acknowledged(rig: Rig) -> None:
    """S-192, S-197: 200 records in order; one is settled when the broker has it, not before."""
    rig.transport.answer, rig.transport.window = None, 1000
    rig.transport.connect()
    names = [await rig.publish(f"{BASE}/web/x", {"n": number}) for number in range(200)]
    await rig.until(lambda: len(rig.transport.sent) >= 100, "they leave")
    assert await rig.petal.status(names[0]) is not Status.COMPLETED
    rig.transport.sent[0].done.set_result(0)
    await rig.settled(names[0], Status.COMPLETED)
    rig.transport.answer = 0
    for one in rig.transport.in_flight:
        one.done.set_result(0)
    await rig.settled(names[-1], Status.COMPLETED)
    assert [body["n"] for body in rig.bodies] == list(range(200))


async def test_a_lost_connection_sends_again_what_was_not_confirmed(rig: Rig) -> None:
    """I1: in the old order, and nothing twice that was confirmed."""
    rig.transport.answer = None
    rig.transport.connect()
    names = [await rig.publish(f"{BASE}/web/x", {"n": number}) for number in range(8)]
    await rig.until(lambda: len(rig.transport.sent) == 8, "all left")
    for one in rig.transport.sent[:3]:
        one.done.set_result(0)
    await asyncio.sleep(0)
    rig.transport.lose(LinkLost("cut"))
    rig.transport.answer = 0
    rig.transport.connect()
    await rig.settled(names[-1], Status.COMPLETED)
    assert [body["n"] for body in rig.bodies] == [*range(8), *range(3, 8)]
    assert {one.message.id for one in rig.transport.sent} == set(names), "each bears its record's id"


async def test_a_refused_message_is_a_dead_letter(rig: Rig) -> None:
    """A reason code of 0x80 and above: never again, and somebody can look at it."""
    rig.transport.answer = None
    rig.transport.connect()
    name = await rig.publish(f"{BASE}/web/x", {"n": 1})
    await rig.until(lambda: rig.transport.sent, "it left")
    rig.transport.sent[0].done.set_exception(PublishRefused("not authorized (0x87)", code=0x87))
    await rig.settled(name, Status.FAILED)
    dead = await rig.petal.call("XRANGE", f"{rig.petal.keys.prefix}dead:mqtt", "-", "+")
    assert any(b"not authorized" in value for _, fields in dead for value in fields)
    assert rig.handler.egress.refused == 1


@pytest.mark.parametrize(
    ("topic", "payload", "said"),
    [
        ("a/#", {}, b"wildcard"),
        ("a/" * 8 + "b", {}, b"levels"),
        ("a/" + "b" * 300, {}, b"bytes"),
        ("org/None/device/x/response", {}, b"None"),
        ("a/b", "x" * 140_000, b"payload has 140000 bytes"),
    ],
)
async def test_limits_of_the_broker_are_told_before_it_closes_the_connection(
    rig: Rig, topic: str, payload: Any, said: bytes
) -> None:
    """S-198: size, depth and length of a topic; never a topic with None in it."""
    rig.transport.connect()
    name = await rig.publish(topic, payload)
    await rig.settled(name, Status.FAILED)
    dead = await rig.petal.call("XRANGE", f"{rig.petal.keys.prefix}dead:mqtt", "-", "+")
    assert any(said in value for _, fields in dead for value in fields)
    assert not rig.transport.sent


async def test_telemetry_is_conflated_while_offline(rig: Rig) -> None:
    """S-197: of each topic the latest value; what has quality of service 1 is all kept."""
    for number in range(50):
        await rig.publish("telemetry", {"n": number}, qos=0)
        await rig.publish("other/debug", {"m": number}, qos=0)
    kept = [await rig.publish(f"{BASE}/alert", {"alert": number}) for number in range(5)]
    await rig.until(lambda: rig.handler.egress.conflated == 98, "98 were replaced")
    rig.transport.connect()
    await rig.settled(kept[-1], Status.COMPLETED)
    await rig.until(lambda: len(rig.transport.sent) == 7, "all are out")
    assert {"n": 49} in rig.bodies
    assert {"m": 49} in rig.bodies
    assert [body["alert"] for body in rig.bodies if "alert" in body] == list(range(5))


async def test_newest_responses_go_first_after_a_long_time_offline(server: RealServer, bus_name: str) -> None:
    """The acknowledgement of a command stays before its response; a new response does not wait behind old ones."""
    options = MqttOptions(egress=EgressOptions(newest_first_after=0.0))
    async with link(server, bus_name, options=options) as rig:
        for number in range(4):
            for end, what in (("ack", "ack"), ("response", "result")):
                payload = {"messageId": f"c{number}", "phase": what}
                await rig.publish(end, payload, priority=Priority.HIGH)
        await rig.publish(f"{BASE}/web/x", {"messageId": "plain", "phase": "web"})
        await rig.until(lambda: rig.handler.egress.statistics()["waiting"] == 9, "all wait")
        rig.transport.connect()
        await rig.until(lambda: len(rig.bodies) == 9, "all are out")
        said = [(body["messageId"], body["phase"]) for body in rig.bodies]
        assert said == [
            *[(f"c{number}", phase) for number in (3, 2, 1, 0) for phase in ("ack", "result")],
            ("plain", "web"),
        ]


async def test_the_organisation_comes_changes_and_goes(server: RealServer, bus_name: str) -> None:
    """S-184, S-207, S-209: topics follow without a restart; nothing goes to the wrong one, nothing to None."""
    async with link(server, bus_name) as rig:
        rig.transport.connect()
        rig.who.become(None)
        await rig.until(lambda: rig.transport.filters == {}, "no topic without an organisation")
        data = {"suffix": "response", "payload": {"n": 1}, "qos": 1}
        waits = (await rig.petal.send(words.APP, words.LATER, data, priority=Priority.LOW)).id
        meant = await rig.publish("response", {"n": 2}, organization="ORG1")
        await rig.settled(meant, Status.COMPLETED)
        assert rig.transport.sent[-1].message.topic == f"{BASE}/response"
        assert await rig.petal.status(waits) is not Status.COMPLETED
        rig.who.become("ORG2")
        await rig.settled(waits, Status.COMPLETED)
        assert rig.transport.sent[-1].message.topic == "org/ORG2/device/Instance-m1/response"
        assert set(rig.transport.filters) == {
            f"org/ORG2/device/Instance-m1/{end}" for end in ("command/edge", "command", "response")
        }
        late = await rig.publish("response", {"n": 3}, organization="ORG1")
        await rig.settled(late, Status.COMPLETED)
        assert rig.transport.sent[-1].message.topic == f"{BASE}/response", "it was meant for the first one"


async def test_a_deadline_that_passes_offline_is_told(rig: Rig) -> None:
    """Nobody waits for it any more: it does not leave, and its sender is told."""
    name = await rig.publish(f"{BASE}/web/x", {"n": 1}, deadline=0.3)
    await rig.until(lambda: rig.handler.egress.statistics()["waiting"] == 1, "it waits")
    await rig.settled(name, Status.TIMEOUT)
    rig.transport.connect()
    last = await rig.publish(f"{BASE}/web/x", {"n": 2}, deadline=30)
    await rig.settled(last, Status.COMPLETED)
    assert rig.bodies == [{"n": 2}]
    assert 28 < (rig.transport.sent[0].message.expiry or 0) <= 30, "the broker is told how long it is wanted"


async def test_the_rate_of_the_broker_is_kept(server: RealServer, bus_name: str) -> None:
    """100 a second with a burst of 100: 130 messages take at least 0.3 s."""
    async with link(server, bus_name) as rig:
        rig.transport.window = 1000
        for number in range(130):
            await rig.publish(f"{BASE}/web/x", {"n": number})
        await rig.until(lambda: rig.handler.egress.statistics()["waiting"] == 130, "all wait")
        loop = asyncio.get_running_loop()
        start = loop.time()
        rig.transport.connect()
        await rig.until(lambda: len(rig.transport.sent) == 130, "all are out")
        assert 0.25 < loop.time() - start < 5
        assert [body["n"] for body in rig.bodies] == list(range(130))


async def test_a_petal_s_wish_for_a_topic_is_followed(rig: Rig) -> None:
    """S-176: the link subscribes it, and gives it up when nobody wants it any more."""
    key = words.filters_key(rig.petal.keys)
    await rig.petal.call("HSET", key, words.filter_field("petal", "my/topic"), 1)
    await rig.petal.send(words.COMMANDS, words.FILTERS, {})
    await rig.until(lambda: rig.transport.filters.get("my/topic") == 1, "it is wanted")
    await rig.petal.call("HDEL", key, words.filter_field("petal", "my/topic"))
    await rig.petal.send(words.COMMANDS, words.FILTERS, {})
    await rig.until(lambda: "my/topic" not in rig.transport.filters, "it is given up")


async def test_the_state_of_the_link_can_be_read(rig: Rig) -> None:
    """S-172, S-191: connected or not, why not, who we are, how much waits."""
    key = words.link_key(rig.petal.keys)

    async def told() -> dict[bytes, bytes]:
        return dict(words.hash_items(await rig.petal.call("HGETALL", key)))

    rig.transport.connect()
    async with asyncio.timeout(5):
        while (await told()).get(b"connected") != b"1":
            await asyncio.sleep(0.01)
    rig.transport.lose(LinkLost("cut"))
    async with asyncio.timeout(5):
        while (await told()).get(b"connected") != b"0":
            await asyncio.sleep(0.01)
    found = await told()
    assert (found[b"problem"], found[b"organization"], found[b"transport"]) == (b"lost", b"ORG1", b"held")
    statistics = rig.handler.statistics()
    assert (statistics["connected"], statistics["problem"]) == (False, "lost")


async def test_our_own_responses_are_not_recorded_again(rig: Rig) -> None:
    """The responses' topic is subscribed, and our own responses leave there: their records lie in the outbox."""
    rig.transport.connect()
    name = await rig.publish("response", {"messageId": "1", "status": "success"})
    await rig.settled(name, Status.COMPLETED)
    ours = rig.transport.sent[0].message
    for _ in range(2):  # the second one is somebody else's, who says the same
        await rig.transport.bring(ours.topic, ours.payload)
    assert (rig.handler.egress.echoed, rig.handler.ingress.stored) == (1, 1)


async def test_what_comes_back_to_somebody_who_listens_is_recorded(rig: Rig) -> None:
    """A command of one petal to this very device, and a message between petals over a topic that one of them wishes."""
    key = words.filters_key(rig.petal.keys)
    await rig.petal.call("HSET", key, words.filter_field("petal", f"{BASE}/response"), 1)
    await rig.petal.send(words.COMMANDS, words.FILTERS, {})
    rig.transport.connect()
    await asyncio.sleep(0.1)
    for end, payload in (("command/edge", {"messageId": "c", "command": "none/x"}), ("response", {"messageId": "r"})):
        name = await rig.publish(f"{BASE}/{end}", payload)
        await rig.settled(name, Status.COMPLETED)
        ours = rig.transport.sent[-1].message
        await rig.transport.bring(ours.topic, ours.payload)
    assert (rig.handler.egress.echoed, rig.handler.ingress.stored) == (0, 2)


async def test_what_was_lost_on_its_way_leaves_no_echo_behind(rig: Rig) -> None:
    """Another drone says the same later: that is a message."""
    rig.transport.answer = None
    rig.transport.connect()
    await rig.publish("response", {"messageId": "1"})
    await rig.until(lambda: rig.transport.sent, "it left")
    rig.transport.lose(LinkLost("cut"))
    await asyncio.sleep(0.05)
    ours = rig.transport.sent[0].message
    await rig.transport.bring(ours.topic, ours.payload)
    assert (rig.handler.egress.echoed, rig.handler.ingress.stored) == (0, 1)


async def test_messages_without_an_organisation_hold_nothing_up(server: RealServer, bus_name: str) -> None:
    """A thousand of them wait; an alert with a topic of its own leaves at once."""
    async with link(server, bus_name) as rig:
        rig.who.become(None)
        await rig.until(lambda: rig.transport.filters == {}, "the organisation is gone")
        rig.transport.connect()
        later = {"suffix": "command/web", "payload": {"n": 1}, "qos": 1}
        for _ in range(1000):
            await rig.petal.send(words.APP, words.LATER, later, priority=Priority.LOW)
        for _ in range(100):  # as another program might send it
            await rig.petal.send(words.APP, words.PUBLISH, later)
        alert = await rig.publish("fleet/alert", {"alert": 1})
        await rig.settled(alert, Status.COMPLETED)
        assert rig.bodies == [{"alert": 1}]
        rig.transport.window = 2000
        rig.who.become("ORG1")
        await rig.until(lambda: len(rig.transport.sent) >= 101, "they leave")


async def test_what_must_arrive_does_not_wait_behind_telemetry(server: RealServer, bus_name: str) -> None:
    """More telemetry than the broker takes: an alert of the same priority leaves before it."""
    options = MqttOptions(egress=EgressOptions(rate=20))
    async with link(server, bus_name, options=options) as rig:
        rig.transport.connect()
        for number in range(200):
            await rig.publish(f"sensor/{number}", {"n": number}, qos=0)
        alert = await rig.publish("fleet/alert", {"alert": 1})
        begun = asyncio.get_running_loop().time()
        await rig.settled(alert, Status.COMPLETED)
        assert asyncio.get_running_loop().time() - begun < 3, "200 messages at this rate take 9 s"


async def test_a_response_that_cannot_leave_is_answered_for(rig: Rig) -> None:
    """It is too large, or the broker refuses it: whoever waits is told."""
    rig.transport.connect()
    await rig.petal.call("HSET", words.handlers_key(rig.petal.keys), "petal", b"null")
    for name, payload in (("big", "x" * 140_000), ("refused", "small")):
        command = {"messageId": name, "command": "petal/go", "waitResponse": True}
        await rig.transport.bring(f"{BASE}/command", command)
        await rig.until(lambda: len(rig.handler.dispatch.waiting) == 1, "it waits")
        rig.transport.answer = None if name == "refused" else 0
        before = len(rig.transport.sent)
        await rig.publish("response", {"messageId": name, "data": payload}, priority=Priority.HIGH)
        if name == "refused":
            await rig.until(lambda at=before: len(rig.transport.sent) > at, "it left")
            rig.transport.answer = 0
            rig.transport.sent[-1].done.set_exception(PublishRefused("no", code=0x87))

        def told(name: str = name) -> list[Any]:
            return [body.get("error_code") for body in rig.bodies if body["messageId"] == name]

        await rig.until(lambda: "RESPONSE_REFUSED" in told(), "it is answered")


async def test_the_daemon_s_own_commands_do_not_wait_behind_a_backlog(rig: Rig) -> None:
    """Offline, 2,000 messages wait; what arrives is dispatched all the same."""
    for number in range(2000):
        await rig.publish(f"{BASE}/web/x", {"n": number})
    rig.transport.connect()
    await rig.transport.bring(f"{BASE}/command", {"messageId": "1", "command": "none/x", "waitResponse": True})
    await rig.until(lambda: any(body.get("messageId") == "1" for body in rig.bodies), "it is answered")
    assert len(rig.bodies) < 1000
