"""Sending: receipts, duplicates, what is refused and why. On a real server."""

from __future__ import annotations

import asyncio

import pytest

from bus.clients import Clients
from petalbus.daemon.bus.errors import BusFull, IdConflict, NotOpen, QueueFull, RateLimited
from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.record import Record
from petalbus.schemas.vocabulary import MAX_PAYLOAD_BYTES, Priority

from support.servers import RealServer


async def stored(clients: Clients, server: RealServer, app: str, priority: Priority = Priority.NORMAL) -> list[Record]:
    """The records of one inbox stream."""
    stream = f"{{{clients.bus}}}:queue:{app}:inbox:{int(priority)}"
    rows = server.command("XRANGE", stream, "-", "+")
    return [Record.from_fields([part for pair in fields.items() for part in pair]) for _, fields in rows]


async def test_a_receipt_names_what_is_stored(clients: Clients, server: RealServer) -> None:
    """I1: the receipt's stream id is the entry's; the record carries source, recipient, priority, times and payload."""
    gcs = await clients.open("gcs")
    receipt = await gcs.send("HEAR_FC", "command", {"command": "arm"}, priority=Priority.HIGH, id="m-1", key="motor")
    assert (receipt.id, receipt.duplicate, receipt.durability) == ("m-1", False, "no")
    stream = gcs.keys.inbox("HEAR_FC", Priority.HIGH)
    assert len(server.command("XRANGE", stream, receipt.stream_id, receipt.stream_id)) == 1
    (record,) = await stored(clients, server, "HEAR_FC", Priority.HIGH)
    assert (record.id, record.type, record.source, record.recipient) == ("m-1", "command", "gcs", "HEAR_FC")
    assert (record.priority, record.key, record.data) == (Priority.HIGH, "motor", {"command": "arm"})
    assert record.time is not None
    assert record.mono is not None


@pytest.mark.parametrize("level", list(Priority))
async def test_each_priority_has_its_stream(clients: Clients, server: RealServer, level: Priority) -> None:
    """S-085, S-105, S-106, S-107, S-108, S-146: four inbox streams an app; the one of the level gets the
    record, no other.
    """
    gcs = await clients.open("gcs")
    await gcs.send("app", "ping", {}, priority=level)
    lengths = {other: server.command("XLEN", gcs.keys.inbox("app", other)) for other in Priority}
    assert lengths == {other: int(other is level) for other in Priority}


async def test_a_duplicate_gets_the_first_ones_stream_id(clients: Clients, server: RealServer) -> None:
    """I2: one entry per id, also from a second process of the same app, also hundreds at once."""
    one, two = await clients.open("gcs"), await clients.open("gcs")
    first = await one.send("app", "ping", {"n": 1}, id="same")
    again = await asyncio.gather(
        *(bus.send("app", "ping", {"n": 1}, id="same") for bus in (one, two) for _ in range(100))
    )
    assert {receipt.stream_id for receipt in again} == {first.stream_id}
    assert all(receipt.duplicate for receipt in again)
    assert server.command("XLEN", one.keys.inbox("app", 2)) == 1


async def test_racing_first_sends_of_one_id_store_one_record(clients: Clients, server: RealServer) -> None:
    """I2: of many that send a new id at once exactly one is told that it was the first."""
    buses = [await clients.open("gcs", presence=False) for _ in range(4)]
    receipts = await asyncio.gather(*(bus.send("app", "ping", {}, id="race") for bus in buses for _ in range(25)))
    assert sum(not receipt.duplicate for receipt in receipts) == 1
    assert len({receipt.stream_id for receipt in receipts}) == 1
    assert server.command("XLEN", buses[0].keys.inbox("app", 2)) == 1


async def test_an_id_of_somebody_else_is_a_conflict(clients: Clients, server: RealServer) -> None:
    """I2: another source, recipient or priority with a used id is refused, with the owner's name, and nothing
    is stored.
    """
    gcs, other = await clients.open("gcs"), await clients.open("other")
    await gcs.send("app", "ping", {}, id="mine")
    with pytest.raises(IdConflict, match="'gcs' for 'app' at priority 2"):
        await other.send("app", "ping", {}, id="mine")
    with pytest.raises(IdConflict):
        await gcs.send("app2", "ping", {}, id="mine")
    with pytest.raises(IdConflict):
        await gcs.send("app", "ping", {}, id="mine", priority=Priority.CRITICAL)
    assert server.command("XLEN", gcs.keys.inbox("app", 2)) == 1
    assert server.command("EXISTS", gcs.keys.inbox("app2", 2), gcs.keys.inbox("app", 4)) == 0


@pytest.mark.parametrize("message_id", ["!before", "before", "~", "0-1", "a|b|c", "{x}"])
async def test_every_legal_id_is_only_an_id(clients: Clients, message_id: str) -> None:
    """I2: no id means anything to the bus itself, also across generations of the window."""
    gcs = await clients.open("gcs", window_ids=3)
    receipts = [await gcs.send("app", "ping", {}, id=f"other-{number}") for number in range(4)]
    assert not any(receipt.duplicate for receipt in receipts)
    first = await gcs.send("app", "ping", {}, id=message_id)
    assert not first.duplicate
    assert (await gcs.send("app", "ping", {}, id=message_id)).stream_id == first.stream_id


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"recipient": "no such:name"}, "recipient"),
        ({"recipient": "{x}"}, "recipient"),
        ({"type": "two words"}, "type"),
        ({"data": {1, 2}}, "data"),
        ({"data": {"lat": float("nan")}}, "data"),
        ({"id": ""}, "id"),
        ({"id": "a b"}, "id"),
        ({"id": "x" * 129}, "id"),
        ({"priority": 5}, "priority"),
        ({"deadline": 0}, "deadline"),
        ({"deadline": -1.0}, "deadline"),
        ({"key": ""}, "key"),
        ({"key": "k" * 129}, "key"),
        ({"type": "command", "data": {"nothing": 1}}, "command"),
    ],
)
async def test_what_is_malformed_is_refused_by_its_field(
    clients: Clients, server: RealServer, change: dict[str, object], field: str
) -> None:
    """S-153: a malformed argument is refused before anything is sent; the error names the field."""
    gcs = await clients.open("gcs")
    arguments: dict[str, object] = {"recipient": "app", "type": "note", "data": {}, **change}
    with pytest.raises(RecordInvalid) as refused:
        await gcs.send(**arguments)  # type: ignore[arg-type]
    assert field in refused.value.field
    assert server.command("EXISTS", *gcs.keys.inboxes("app").values()) == 0


async def test_one_mebibyte_passes_and_one_byte_more_does_not(clients: Clients) -> None:
    """S-153: payloads up to 1 MiB arrive unharmed; a larger one is refused with the limit in the error."""
    gcs, app = await clients.open("gcs"), clients.make("app")
    got: asyncio.Queue[bytes] = asyncio.Queue()

    @app.on("blob")
    async def blob(record: Record) -> None:
        await got.put(record.data)

    await app.start()
    body = bytes(range(256)) * (MAX_PAYLOAD_BYTES // 256)
    await gcs.send("app", "blob", body)
    assert await asyncio.wait_for(got.get(), 10) == body
    with pytest.raises(RecordInvalid, match=str(MAX_PAYLOAD_BYTES)):
        await gcs.send("app", "blob", body + b"x")
    with pytest.raises(RecordInvalid, match=str(MAX_PAYLOAD_BYTES)):
        await gcs.send("app", "text", {"text": "x" * MAX_PAYLOAD_BYTES})
    with pytest.raises(RecordInvalid, match=str(MAX_PAYLOAD_BYTES)):
        await gcs.publish("topic", "blob", body + b"x")
    too_big = Record(id="big", type="blob", source="gcs", recipient="app", data=body + b"x", content_type="x/y")
    with pytest.raises(RecordInvalid, match=str(MAX_PAYLOAD_BYTES)):
        await gcs.send_many([too_big])


async def test_send_many_keeps_complete_records_and_reports_each(clients: Clients, server: RealServer) -> None:
    """S-149: a batch over several inboxes: ids, sources, unknown fields and order are kept; a repetition is
    recognised.
    """
    gcs = await clients.open("gcs")
    records = [
        Record.checked(
            {"id": f"r{n}", "type": "note", "source": "fc", "recipient": "ab"[n % 2], "data": b'{"n":%d}' % n, "x": "1"}
        )
        for n in range(300)
    ]
    receipts = await gcs.send_many(records)
    assert [receipt.id for receipt in receipts] == [record.id for record in records]
    for app, rest in (("a", 0), ("b", 1)):
        found = await stored(clients, server, app)
        assert [record.data["n"] for record in found] == list(range(rest, 300, 2))
        assert {(record.source, record.extra["x"]) for record in found} == {("fc", b"1")}
    again = await gcs.send_many(records[:3])
    assert [receipt.stream_id for receipt in again] == [receipt.stream_id for receipt in receipts[:3]]
    assert all(receipt.duplicate for receipt in again)
    with pytest.raises(RecordInvalid, match="recipient"):
        await gcs.send_many([records[0], Record(id="nobody", type="note", source="fc")])


async def test_a_full_inbox_refuses_loudly_and_only_itself(clients: Clients, server: RealServer) -> None:
    """I5, S-145: beyond the limit a send is refused as not stored; other inboxes go on; a repetition is still
    a duplicate.
    """
    gcs = await clients.open("gcs", inbox_limit=10)
    sent = [await gcs.send("app", "note", {}, id=f"n{number}") for number in range(10)]
    refused = 0
    for _ in range(200):  # limits are looked at now and then, not at every send
        try:
            await gcs.send("app", "note", {})
        except QueueFull as error:
            refused += "inbox:2" in str(error) and "nothing was stored" in str(error)
    assert refused > 0
    assert server.command("XLEN", gcs.keys.inbox("app", 2)) <= 10 + 128
    assert server.command("XLEN", gcs.keys.inbox("app", 2)) == 210 - refused, "a refused record was stored, or lost"
    repetitions = [await gcs.send("app", "note", {}, id=receipt.id) for receipt in sent * 20]
    assert all(receipt.duplicate for receipt in repetitions)
    await gcs.send("app", "note", {}, priority=Priority.CRITICAL)
    await gcs.send("other", "note", {})


async def test_telemetry_above_the_rate_is_refused_and_counted(clients: Clients, server: RealServer) -> None:
    """I5, S-144: the source's own limit: a burst of one second passes, the rest is refused; commands are not
    limited.
    """
    gcs = await clients.open("gcs", telemetry_rate=20)
    results = await asyncio.gather(
        *(gcs.publish("telemetry", "telemetry", {"altitude": n}) for n in range(15)),
        *(gcs.send("app", "telemetry", {"altitude": n}) for n in range(25)),
        return_exceptions=True,
    )
    refused = [result for result in results if isinstance(result, RateLimited)]
    assert 18 <= len(refused) <= 20
    assert gcs.statistics()["telemetry_refused"] == len(refused)
    stored_now = server.command("XLEN", gcs.keys.topic("telemetry")) + server.command("XLEN", gcs.keys.inbox("app", 2))
    assert stored_now == 40 - len(refused)
    for _ in range(50):
        await gcs.send("app", "command", {"command": "land"})


async def test_above_the_memory_ceiling_nothing_is_stored(own_clients: Clients, own_server: RealServer) -> None:
    """I5: BusFull says that nothing was stored, and that is true; a repetition of a stored record is still answered."""
    gcs = await own_clients.open("gcs")
    first = await gcs.send("app", "note", {}, id="first")
    own_server.command("CONFIG", "SET", "maxmemory-clients", "0", "maxmemory", "1")
    with pytest.raises(BusFull, match="nothing was stored"):
        await gcs.send("app", "note", {}, id="second")
    with pytest.raises(BusFull, match="nothing was stored"):
        await gcs.publish("topic", "note", {})
    assert (await gcs.send("app", "note", {}, id="first")).stream_id == first.stream_id
    own_server.command("CONFIG", "SET", "maxmemory", "0")
    assert own_server.command("XLEN", gcs.keys.inbox("app", 2)) == 1
    assert own_server.command("EXISTS", gcs.keys.topic("topic")) == 0
    assert not (await gcs.send("app", "note", {}, id="second")).duplicate


@pytest.mark.parametrize("encoding", ["zlib", "zstd"])
async def test_large_payloads_travel_compressed(clients: Clients, server: RealServer, encoding: str) -> None:
    """S-150: requests, replies and topics: compressed above the limit, marked, smaller on the wire, the same
    for the reader.
    """
    if encoding == "zstd":
        pytest.importorskip("zstandard", reason="zstd is an extra")
    text = {"text": "altitude 10.0 " * 2000}
    gcs = await clients.open("gcs", compress_over=1000, compression=encoding)
    app = clients.make("app", compress_over=1000, compression=encoding)

    @app.on("echo")
    async def echo(record: Record) -> object:
        return record.data

    await app.start()
    async with gcs.subscribe("news") as news:
        await gcs.publish("news", "text", text)
        heard = await anext(aiter(news))
        assert heard.data == text
        assert heard.encoding == encoding
        reply = await gcs.request("app", "echo", text)
        assert reply.data == text
        assert reply.encoding == encoding
        (record,) = await stored(clients, server, "app")
        assert len(record.raw) < 2000
        assert (await gcs.request("app", "echo", {"n": 1})).encoding is None
        body = b"\x00" * 5000
        assert (await gcs.request("app", "echo", body)).data == body


async def test_more_sends_than_may_be_in_flight_wait_for_room(clients: Clients, server: RealServer) -> None:
    """Everything is bounded: two thousand tasks, 50 places; all are stored, in the order of their start."""
    gcs = await clients.open("gcs", max_in_flight=50)
    sends = [asyncio.create_task(gcs.send("app", "note", {"n": n}), name=f"send-{n}") for n in range(2000)]
    await asyncio.sleep(0)
    assert gcs.statistics()["in_flight"] <= 50
    await asyncio.gather(*sends)
    assert [record.data["n"] for record in await stored(clients, server, "app")] == list(range(2000))
    assert gcs.statistics()["in_flight"] == 0


async def test_a_client_that_is_not_open_says_so_at_once(clients: Clients) -> None:
    """Before it was started, and after it was closed: nothing is waited for, and the error says what to do."""
    bus = clients.make("gcs")
    for call in (bus.send("app", "ping", {}), bus.request("app", "ping", {}), bus.publish("t", "ping", {})):
        with pytest.raises(NotOpen, match="async with"):
            await call
    with pytest.raises(NotOpen):
        bus.dead  # noqa: B018  # reading it is the test
    assert not hasattr(bus, "misspelt")
    await bus.start()
    await bus.send("app", "ping", {})
    await bus.close()
    async with asyncio.timeout(1):
        for call in (bus.send("app", "ping", {}), bus.request("app", "ping", {}), bus.publish("t", "ping", {})):
            with pytest.raises(NotOpen, match="closed"):
                await call
        with pytest.raises(NotOpen):
            await bus.status("m-1")
