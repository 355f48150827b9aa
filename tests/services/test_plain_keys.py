"""Programs that live on plain keys: sorted sets, hashes and channels, bridged to the bus and back."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis.asyncio

from bus.clients import Clients, until
from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.errors import ReplyError, RequestTimeout
from petalbus.daemon.services import PlainKeys
from petalbus.schemas.record import Record
from petalbus.schemas.vocabulary import Priority, Status

from .plain_program import APP, CONTROL, Program, bridging
from support.servers import SERVERS, RealServer, running_server, server_id


@pytest.fixture(params=SERVERS, ids=server_id)
def bus_server(request: pytest.FixtureRequest) -> Iterator[RealServer]:
    """A server of the test's own, of every kind found: plain keys have no name of the bus in them."""
    with running_server(request.param) as server:
        yield server


@pytest.fixture
def bus_name() -> str:
    return "petalbus"


async def served(bridge: PlainKeys) -> None:
    """Wait until the program is found."""
    await until(lambda: APP in bridge.statistics()["programs"], "the program is served")


async def settled(bus: Bus, message_id: str, status: Status) -> None:
    async def is_so() -> bool:
        return await bus.status(message_id) is status

    await until(is_so, f"{message_id} is {status}")


async def control_app(clients: Clients, *types: str) -> tuple[Bus, list[Record]]:
    """An application of the bus, and what it gets."""
    control = clients.make(CONTROL)
    got: list[Record] = []

    async def handle(record: Record) -> dict[str, str] | None:
        got.append(record)
        return {"status": "success"} if record.type == "command" else None

    for record_type in types:
        control.on(record_type)(handle)
    await control.start()
    return control, got


@pytest.mark.parametrize("reply_to", [False, True], ids=["by id", "by reply_to"])
async def test_a_command_goes_out_and_its_response_comes_back(
    clients: Clients, bus: Bus, keys: redis.asyncio.Redis, reply_to: bool
) -> None:  # fmt: skip
    """S-085, S-090, S-093, S-094, S-130, S-131, S-138, S-155, C-18: a reply named by reply_to, or by its own id."""
    control, _ = await control_app(clients)

    def answer(message: dict[str, Any]) -> dict[str, Any]:
        return {"status": "success", "command_id": message["payload"]["command_id"]}

    async with bridging(bus) as bridge, Program(keys, answer=answer, reply_to=reply_to).running() as program:
        for number in range(3):  # a program may give each reply the same id
            command = {"command_id": f"cmd_{number}", "command": "takeoff", "parameters": {"altitude": 20}}
            reply = await control.request(APP, "command", command, priority=Priority.HIGH, timeout=5)
            assert reply.data == {"status": "success", "command_id": f"cmd_{number}"}
            assert (reply.type, reply.source) == ("command_response", APP)
            message = program.got[number]
            assert reply.reply_to == message["id"]
            assert {name: message[name] for name in ("sender", "recipient", "message_type", "payload", "priority")} == {
                "sender": CONTROL, "recipient": APP, "message_type": "command", "payload": command, "priority": 3,
            }  # fmt: skip
            assert abs(message["timestamp"] - time.time()) < 60
            assert message["timeout"] == 5
            assert await control.status(message["id"]) is Status.COMPLETED
        about = await keys.hgetall(f"message:{program.got[0]['id']}")
        assert {name: about[name] for name in ("sender", "recipient", "type")} == {
            "sender": CONTROL, "recipient": APP, "type": "command",
        }  # fmt: skip
        assert float(about["timestamp"]) > 0
        assert bridge.counts["handed"] == 3


async def test_a_failed_response_is_an_error(clients: Clients, bus: Bus, keys: redis.asyncio.Redis) -> None:
    """S-130, S-134, C-18: status failed makes the request fail and the message failed."""
    control, _ = await control_app(clients)
    program = Program(keys, answer=lambda _: {"status": "failed", "message": "not armed"})
    async with bridging(bus), program.running():
        with pytest.raises(ReplyError) as refused:
            await control.request(APP, "command", {"command": "takeoff"}, timeout=5)
        assert refused.value.detail["message"] == "not armed"
        assert await control.status(program.got[0]["id"]) is Status.FAILED


async def test_telemetry_reaches_the_application_and_says_so(
    clients: Clients, bus: Bus, keys: redis.asyncio.Redis
) -> None:
    """S-086, S-087, S-090, S-093, S-125, S-132, C-17: taken at the notice, handled, told in its hash, which expires."""
    _, got = await control_app(clients, "telemetry")
    program = Program(keys)
    async with bridging(bus) as bridge:
        await until(lambda: CONTROL in bridge._recipients, "the application is known")
        sample = {"battery_level": 85, "gps_coordinates": {"lat": 37.7749, "lon": -122.4194}, "speed": 5.2}
        sent = await program.send("telemetry", sample)
        await until(lambda: got, "the sample is handled")
        record = got[0]
        assert (record.id, record.source, record.recipient, record.data) == (sent, APP, CONTROL, sample)
        assert record.priority is Priority.NORMAL
        assert await keys.zcard(f"queue:{CONTROL}:inbox") == 0

        async def told() -> bool:
            return bool(await keys.hget(f"message:{sent}", "status") == "completed")

        await until(told, "the hash says completed")
        assert 0 < await keys.ttl(f"message:{sent}") <= bridge.options.keep_for


async def test_a_notice_is_not_needed_but_is_quicker(clients: Clients, bus: Bus, keys: redis.asyncio.Redis) -> None:
    """S-094: with a notice it is there at once although the next look is far; without one that look finds it."""
    _, got = await control_app(clients, "ping")
    program = Program(keys)
    async with bridging(bus, look_every=1.0) as bridge:
        await until(lambda: CONTROL in bridge._recipients, "the application is known")
        begin = time.monotonic()
        await program.send("ping", {})
        await until(lambda: got, "the first is handled")
        assert time.monotonic() - begin < 0.5
        await program.send("ping", {}, notify=False)
        await until(lambda: len(got) == 2, "the second is handled")


async def test_urgent_ones_leave_a_long_queue_first(bus: Bus, keys: redis.asyncio.Redis) -> None:
    """C-16, I4: an emergency in the middle of a backlog, by its score, is added to the bus before all of it."""
    program = Program(keys)
    now = time.time()
    for number in range(100):
        await program.send("n", {"n": number}, priority=1, timestamp=now - 5000 + number, notify=False)
    await program.send("n", {"n": "stop"}, priority=4, timestamp=now, notify=False)
    scores = await keys.zrange(f"queue:{CONTROL}:inbox", 0, -1, withscores=True)
    await keys.zadd(f"queue:{CONTROL}:inbox", {scores[-1][0]: scores[80][1]})
    async with bridging(bus, ingest=False, recipients=[CONTROL]):

        async def added() -> bool:
            return bool(await bus.call("XLEN", bus.keys.ingest) == 101)

        await until(added, "all are added")
    order = [json.loads(fields["data"])["n"] for _, fields in await keys.xrange(bus.keys.ingest)]
    assert order == ["stop", *range(100)]


async def test_the_queue_is_read_by_what_messages_say(clients: Clients, bus: Bus, keys: redis.asyncio.Redis) -> None:
    """C-16: a CRITICAL from before, and LOW ones with a later time, whose score is higher: the CRITICAL comes first."""
    program = Program(keys)
    now = time.time()
    for number in range(200):  # more than are looked at in one step
        await program.send("n", {"n": number}, priority=1, timestamp=now + 4000 + number)
    await program.send("n", {"n": "stop"}, priority=4, timestamp=now)
    for number in range(3):
        await program.send("n", {"n": f"high {number}"}, priority=3, timestamp=now + 10 - number)
    control = clients.make(CONTROL)
    order: list[Any] = []

    @control.on("n")
    async def handle(record: Record) -> None:
        order.append(record.data["n"])

    async with bridging(bus, recipients=[CONTROL]):

        async def moved() -> bool:
            sizes = [await bus.call("XLEN", stream) for stream in bus.keys.inboxes(CONTROL).values()]
            return sum(sizes) == 204

        await until(moved, "all are on the bus")
        await control.start()
        await until(lambda: len(order) == 204, "all are handled")
    assert order[0] == "stop"
    assert [one for one in order if str(one).startswith("high")] == ["high 2", "high 1", "high 0"]
    assert [one for one in order if isinstance(one, int)] == list(range(200))


async def test_an_emergency_overtakes_in_the_program_s_queue(
    clients: Clients, bus: Bus, keys: redis.asyncio.Redis
) -> None:
    """S-085, S-105, S-123, C-16: ZPOPMAX gives CRITICAL first, then HIGH, NORMAL, LOW, the oldest of each first."""
    control, _ = await control_app(clients)
    program = Program(keys)
    await program.announce()
    async with bridging(bus) as bridge:
        await served(bridge)
        for number in range(3):
            for level in (Priority.LOW, Priority.NORMAL, Priority.HIGH):
                await control.send(APP, "n", {"n": f"{level.name}-{number}"}, priority=level)
        await control.send(APP, "command", {"command": "emergency_stop", "parameters": {"immediate": True}})
        await until(lambda: bridge.counts["handed"] == 10, "all are handed over")
        shown = await keys.zrange(f"queue:{APP}:inbox", 0, -1, withscores=True)
        for member, score in shown:
            assert str(int(score))[0] == str(json.loads(member)["priority"])
        while await program.take():
            pass
    got = [message["payload"].get("n") or message["payload"]["command"] for message in program.got]
    assert got == [
        "emergency_stop",
        *(f"{level}-{number}" for level in ("HIGH", "NORMAL", "LOW") for number in range(3)),
    ]


async def test_a_full_queue_leaves_the_rest_on_the_bus(clients: Clients, bus: Bus, keys: redis.asyncio.Redis) -> None:
    """S-145, I5: no more than the ceiling lies in the set; an emergency still gets in; all arrive, none twice."""
    control, _ = await control_app(clients)
    program = Program(keys)
    await program.announce()
    async with bridging(bus, ceiling=10) as bridge:
        await served(bridge)
        for number in range(50):
            await control.send(APP, "n", {"n": number})
        await until(lambda: bridge.statistics()["programs"][APP]["full"], "the queue is full")
        assert await keys.zcard(f"queue:{APP}:inbox") == 10
        await control.send(APP, "n", {"n": "stop"}, priority=Priority.CRITICAL)

        async def in_it() -> bool:
            return bool(await keys.zcard(f"queue:{APP}:inbox") == 11)

        await until(in_it, "the emergency is in")
        async with program.running():
            await until(lambda: len(program.got) == 51, "all arrive")
    assert [message["payload"]["n"] for message in program.got] == ["stop", *range(50)]


async def test_a_command_that_is_too_late_is_taken_away(clients: Clients, bus: Bus, keys: redis.asyncio.Redis) -> None:
    """S-117, S-135: a program that comes back finds no takeoff of yesterday; also after a restart of the bridge."""
    control, _ = await control_app(clients)
    program = Program(keys)
    await program.announce()
    async with bridging(bus) as bridge:
        await served(bridge)
        with pytest.raises(RequestTimeout):
            await control.request(APP, "command", {"command": "takeoff"}, timeout=0.3)
        later = (await control.send(APP, "command", {"command": "land"}, deadline=4)).id
        await until(lambda: bridge.counts["expired"] == 1, "the first is taken away")
        await settled(control, later, Status.DELIVERED)

        async def in_it() -> bool:
            return bool(await keys.zcard(f"queue:{APP}:inbox") == 1)

        await until(in_it, "the later one is in")
    async with bridging(bus) as bridge:
        await until(lambda: bridge.counts["expired"] == 1, "the second is taken away by the next bridge")
        await settled(control, later, Status.TIMEOUT)
        assert await keys.hget(f"message:{later}", "status") == "timeout"
    assert await program.take() is None


async def test_what_waited_too_long_on_the_bus_is_not_handed_over(
    clients: Clients, bus: Bus, keys: redis.asyncio.Redis
) -> None:
    """S-135: while the program was away, or its queue full, the time passed: status timeout, nothing in the set."""
    control, _ = await control_app(clients)
    late = (await control.send(APP, "command", {"command": "takeoff"}, deadline=0.05)).id
    program = Program(keys)
    await program.announce()
    async with bridging(bus, ceiling=1) as bridge:
        await settled(control, late, Status.TIMEOUT)
        await control.send(APP, "n", {})
        await until(lambda: bridge.counts["handed"] == 1, "the queue is full")
        waits = (await control.send(APP, "n", {}, deadline=0.2)).id
        await settled(control, waits, Status.TIMEOUT)
        assert [await program.take() is None for _ in range(2)] == [False, True]


async def test_a_program_s_command_is_answered_in_its_queue(
    clients: Clients, bus: Bus, keys: redis.asyncio.Redis
) -> None:
    """S-084, S-094, S-130: the reply lies in its queue, HIGH, with reply_to, and its channel says so."""
    await control_app(clients, "command")
    program = Program(keys)
    async with keys.pubsub() as channel, bridging(bus) as bridge:
        await channel.subscribe(f"channel:{APP}")
        await channel.get_message(timeout=5)
        await program.announce()
        sent = await program.send("command", {"command": "hover"}, priority=3)
        await until(lambda: bridge.counts["handed"] == 1, "the reply is handed over")
        reply = await program.take()
        assert reply is not None
        assert (reply["reply_to"], reply["sender"], reply["message_type"]) == (sent, CONTROL, "command_response")
        assert (reply["payload"], reply["priority"]) == ({"status": "success"}, 3)
        notice = await channel.get_message(timeout=5)
        assert notice is not None
        assert notice["data"] == f"new_message:{reply['id']}"


async def test_a_program_that_never_announces_itself_is_answered_too(
    clients: Clients, bus: Bus, keys: redis.asyncio.Redis
) -> None:
    await control_app(clients, "command")
    program = Program(keys)
    async with bridging(bus, announced=()):
        await program.send("command", {"command": "hover"})

        async def answered() -> bool:
            return await program.take() is not None

        await until(answered, "the reply lies in its queue")
        assert program.got[0]["payload"] == {"status": "success"}


async def test_what_is_no_message_is_kept_with_the_reason(
    clients: Clients, bus: Bus, keys: redis.asyncio.Redis
) -> None:
    """S-153, I8: one dead letter each, however often it is put there; what is behind it is handled."""
    _, got = await control_app(clients, "ping")
    program = Program(keys)
    queue = f"queue:{CONTROL}:inbox"
    async with bridging(bus):
        for _ in range(2):
            for text in ("no json", "[1]", '{"id":"a"}', json.dumps(_message(recipient="other"))):
                await keys.zadd(queue, {text: 5000})
            await keys.zadd(queue, {json.dumps(_message(timestamp=1763000000000)): 5000})
            await program.send("ping", {})
            await until(lambda: got, "the message behind them is handled")
            got.clear()
        letters = await bus.dead.list(CONTROL)
    assert len(letters) == 5
    told = " ".join(letter.reason for letter in letters)
    for word in ("not JSON", "JSON object", "sender", "other", "timestamp"):
        assert word in told
    assert {letter.field(b"data") for letter in letters} >= {b"no json", b"[1]", b'{"id":"a"}'}
    assert {letter.stream for letter in letters} == {queue}


async def test_a_payload_that_breaks_its_type_is_refused_and_told(
    clients: Clients, bus: Bus, keys: redis.asyncio.Redis
) -> None:
    """S-153: the ingest's checks hold for plain programs as well; the refusal comes into their queue."""
    _, got = await control_app(clients, "telemetry")
    program = Program(keys)
    async with bridging(bus):
        await program.announce()
        sent = await program.send("telemetry", {"battery_level": 500})

        async def answered() -> bool:
            return await program.take() is not None

        await until(answered, "the refusal is there")
        assert program.got[0]["reply_to"] == sent
        assert program.got[0]["payload"]["status"] == "error"
        assert "battery_level" in program.got[0]["payload"]["message"]
        (letter,) = await bus.dead.list("ingest")
        assert letter.field(b"id") == sent.encode()
    assert not got


def _message(**changed: Any) -> dict[str, Any]:
    plain_one = {"id": "m", "sender": APP, "recipient": CONTROL, "message_type": "ping", "payload": {}}
    return plain_one | changed
