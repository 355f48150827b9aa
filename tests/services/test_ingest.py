"""The ingest service: raw records of any program become records of the bus, once each, or dead letters that say why."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from petalbus.daemon.bus.client import Bus
from petalbus.schemas.record import Record
from petalbus.schemas.vocabulary import Status
from services.raw import Clients, dead, empty, entries, ingesting, until, xadd

NOTE: dict[str, Any] = {"type": "note", "source": "HEAR_FC", "data": "{}"}


async def test_a_raw_command_is_answered_like_any_other(clients: Clients, bus: Bus) -> None:
    """S-121, S-130, S-103: a command by bare XADD reaches the app, and its reply names it and lies in the sender's
    replies."""
    vehicle = await clients.open("vehicle")
    seen: list[Record] = []

    @vehicle.on("command")
    async def handle(record: Record) -> dict[str, Any]:
        seen.append(record)
        return {"status": "success", "command": record.data["command"]}

    await vehicle.listen()
    async with ingesting(bus):
        command = {"command": "takeoff", "parameters": {"altitude": 10}}
        await xadd(
            bus,
            id="cmd-1",
            type="command",
            source="HEAR_FC",
            recipient="vehicle",
            priority=3,
            wants_reply=1,
            timeout=5,
            data='{"command":"takeoff","parameters":{"altitude":10}}',
        )

        async def answered() -> list[Any]:
            return await entries(bus, bus.keys.replies("HEAR_FC"))

        await until(answered, "the reply is there")
        [(_, reply)] = await answered()
    assert reply["reply_to"] == b"cmd-1"
    assert reply["kind"] == b"result"
    assert seen[0].data == command
    assert seen[0].priority == 3
    assert await bus.status("cmd-1") is Status.COMPLETED


async def test_a_repeated_id_is_adopted_once(clients: Clients, bus: Bus) -> None:
    """I2: the same id again, to an inbox, to a topic, or as a reply, is one record."""
    async with ingesting(bus) as ingest:
        for _ in range(3):
            await xadd(bus, id="a", recipient="app", **NOTE)
            await xadd(bus, id="b", topic="t", **NOTE)
            await xadd(bus, id="c", recipient="gcs", reply_to="zz", kind="result", **NOTE)
        await empty(bus)
        assert ingest.counts["adopted"] == 3
        assert ingest.counts["duplicates"] == 6
    assert len(await entries(bus, bus.keys.inbox("app", 2))) == 1
    assert len(await entries(bus, bus.keys.topic("t"))) == 1
    assert len(await entries(bus, bus.keys.replies("gcs"))) == 1
    assert await dead(bus) == []


async def test_a_repetition_through_the_library_and_by_hand_is_one_message(clients: Clients, bus: Bus) -> None:
    """I2: both ways in share one window."""
    fc = await clients.open("HEAR_FC")
    receipt = await fc.send("app", "note", {}, id="same")
    async with ingesting(bus) as ingest:
        await xadd(bus, id="same", recipient="app", **NOTE)
        await until(lambda: ingest.counts["duplicates"], "the repetition is noticed")
        await xadd(bus, id="other", recipient="app", **NOTE)
        await empty(bus)
    again = await fc.send("app", "note", {}, id="other")
    assert again.duplicate
    assert [entry for entry, _ in await entries(bus, bus.keys.inbox("app", 2))] == [receipt.stream_id, again.stream_id]


async def test_short_windows_rotate_and_stay_small(clients: Clients, bus: Bus) -> None:
    """Topic records are remembered for a while only, so that telemetry cannot push commands out of the window (I2)."""
    async with ingesting(bus, short_window_ids=100):
        for number in range(1000):
            await xadd(bus, id=f"t{number}", topic="t", **NOTE)
        await empty(bus)
        await xadd(bus, id="t999", topic="t", **NOTE)
        await empty(bus)
    assert await bus.call("XLEN", bus.keys.topic("t")) == 1000
    assert await bus.call("HLEN", f"{bus.keys.prefix}ids:short:current") <= 100 + 64 + 1
    assert await bus.call("EXISTS", bus.keys.ids) == 0


async def test_a_reply_by_hand_settles_the_message(clients: Clients, bus: Bus) -> None:
    """S-087, S-103, S-136: an app without the library reads its inbox, answers, and the requester has its result; the
    entry is acknowledged and the status completed in the same step."""
    gcs = await clients.open("gcs")
    inbox = bus.keys.inbox("HEAR_FC", 3)
    await bus.call("XGROUP", "CREATE", inbox, "inbox", 0, "MKSTREAM")
    progress: list[Record] = []
    async with ingesting(bus):
        asking = asyncio.create_task(
            gcs.request("HEAR_FC", "command", {"command": "arm"}, id="q1", priority=3, on_progress=progress.append)
        )
        rows = await bus.call("XREADGROUP", "GROUP", "inbox", "main", "COUNT", 1, "BLOCK", 5000, "STREAMS", inbox, ">")
        [(entry, _)] = rows[0][1]
        common = {"source": "HEAR_FC", "recipient": "gcs", "reply_to": "q1", "data": '{"status":"ok"}'}
        await xadd(bus, id="r0", type="command_response", kind="progress", **common)

        async def processing() -> bool:
            return await bus.status("q1") is Status.PROCESSING

        await until(processing, "progress shows the message as processing")
        assert (await bus.call("XPENDING", inbox, "inbox"))[0] == 1
        await xadd(bus, id="r1", type="command_response", kind="result", **common)
        reply = await asking
    assert reply.id == "r1"
    assert [record.id for record in progress] == ["r0"]
    assert await bus.status("q1") is Status.COMPLETED
    assert (await bus.call("XPENDING", inbox, "inbox"))[0] == 0
    assert await bus.call("XLEN", inbox) == 1, f"history keeps {entry!r}"
    # whoever asks again, also after a restart, gets the same reply
    assert (await gcs.request("HEAR_FC", "command", {"command": "arm"}, id="q1", priority=3)).id == "r1"


@pytest.mark.parametrize(("kind", "status"), [("error", Status.FAILED), ("cancelled", Status.CANCELLED)])
async def test_other_final_replies_settle_it_too(clients: Clients, bus: Bus, kind: str, status: Status) -> None:
    """S-134: failed and cancelled."""
    gcs = await clients.open("gcs")
    await gcs.send("HEAR_FC", "note", {}, id="q2")
    async with ingesting(bus):
        await xadd(bus, id="r", recipient="gcs", reply_to="q2", kind=kind, **NOTE)
        await empty(bus)
    assert await bus.status("q2") is status


async def test_only_the_recipient_answers_and_only_once(clients: Clients, bus: Bus) -> None:
    gcs = await clients.open("gcs")
    await gcs.send("HEAR_FC", "note", {}, id="q3")
    async with ingesting(bus):
        await xadd(bus, **{**NOTE, "source": "stranger"}, id="r1", recipient="gcs", reply_to="q3", kind="result")
        await xadd(bus, id="r2", recipient="somebody", reply_to="q3", kind="result", **NOTE)
        await xadd(bus, id="r3", recipient="gcs", reply_to="q3", kind="result", **NOTE)
        await xadd(bus, id="r4", recipient="gcs", reply_to="q3", kind="error", **NOTE)
        await empty(bus)
    reasons = [letter["dead_reason"].decode() for letter in await dead(bus)]
    assert [reason.partition(":")[0] for reason in reasons] == ["not your message", "not your message", "too late"]
    assert all("'reply_to'" in reason for reason in reasons)
    assert [fields["id"] for _, fields in await entries(bus, bus.keys.replies("gcs"))] == [b"r3"]
    assert await bus.status("q3") is Status.COMPLETED


async def test_an_id_of_another_message_is_a_dead_letter_and_its_sender_is_told(clients: Clients, bus: Bus) -> None:
    async with ingesting(bus):
        await xadd(bus, id="x", recipient="app", **NOTE)
        await xadd(bus, **{**NOTE, "source": "other"}, id="x", recipient="app")
        await empty(bus)
    [letter] = await dead(bus)
    assert letter["dead_reason"].startswith(b"id conflict: field 'id'")
    [(_, told)] = await entries(bus, bus.keys.replies("other"))
    assert (told["kind"], told["reply_to"]) == (b"error", b"x")
    assert b"ID_CONFLICT" in told["data"]


async def test_a_full_inbox_refuses_loudly_and_holds_up_nobody(clients: Clients) -> None:
    """I5, S-145: a queue has its size; what does not fit is kept with the reason and its sender is told."""
    bus = await clients.open("petalbus", inbox_limit=2)
    async with ingesting(bus):
        for number in range(3):
            await xadd(bus, id=f"m{number}", recipient="away", **NOTE)
        await xadd(bus, id="next", recipient="present", **NOTE)
        await empty(bus)
    assert await bus.call("XLEN", bus.keys.inbox("away", 2)) == 2
    assert await bus.call("XLEN", bus.keys.inbox("present", 2)) == 1
    [letter] = await dead(bus)
    assert letter["dead_reason"].startswith(b"queue full: field 'recipient'")
    [(_, told)] = await entries(bus, bus.keys.replies("HEAR_FC"))
    assert told["reply_to"] == b"m2"


async def test_a_dead_letter_has_the_notes_that_the_command_line_reads(clients: Clients, bus: Bus) -> None:
    async with ingesting(bus):
        entry = await xadd(bus, type="telemetry", source="HEAR_FC", data='{"battery_level":85}', extra="kept")
        await empty(bus)
    [letter] = await bus.dead.list("ingest")
    assert letter.reason == "invalid: field 'id': is missing (expected 1 to 128 visible ASCII characters)"
    assert (letter.attempts, letter.stream) == (1, bus.keys.ingest)
    assert letter.field(b"extra") == b"kept"
    [fields] = await dead(bus)
    assert fields["dead_entry"] == entry.encode()


async def test_monstrous_entries_become_bounded_dead_letters(clients: Clients, bus: Bus) -> None:
    """Thousands of fields, or a field of megabytes: kept as far as a dead letter goes, and it says so."""
    async with ingesting(bus):
        await xadd(bus, **{f"f{number}": "x" for number in range(9000)})
        await xadd(bus, id="big", source="HEAR_FC", recipient="app", type="note", data="x" * 3_000_000)
        await xadd(bus, id="after", recipient="app", **NOTE)
        await empty(bus)
    many, large = await dead(bus)
    assert b"8488 further fields are not kept" in many["dead_detail"]
    assert many["dead_reason"].startswith(b"invalid: field 'record': has 9000 fields")
    assert len(large["data"]) == 64 * 1024
    assert b"the first 65536 of 3000000 bytes" in large["dead_detail"]
    assert await bus.call("XLEN", bus.keys.inbox("app", 2)) == 1


async def test_a_flood_of_invalid_records_blocks_nobody(clients: Clients, bus: Bus) -> None:
    """I8: 3,000 poison records, and valid ones between and behind them arrive, in order, while the flood goes on."""
    async with ingesting(bus) as ingest:
        flood = [xadd(bus, id=f"bad {number}", recipient="app", **NOTE) for number in range(3000)]
        good = [xadd(bus, id=f"good-{number}", recipient="app", **NOTE) for number in range(30)]
        mixed = [call for at, call in enumerate(good) for call in (*flood[at * 100 : at * 100 + 100], call)]
        await asyncio.gather(*mixed)
        await empty(bus)
        assert ingest.counts["invalid"] == 3000
    adopted = [fields["id"].decode() for _, fields in await entries(bus, bus.keys.inbox("app", 2))]
    assert adopted == [f"good-{number}" for number in range(30)]
    assert await bus.call("XLEN", bus.keys.dead("ingest")) == 3000
    # telling the sender is bounded: its replies are not pushed out by 3,000 refusals
    assert await bus.call("EXISTS", bus.keys.replies("HEAR_FC")) == 0, "an invalid id cannot be answered"


async def test_refusals_to_one_source_are_bounded(clients: Clients, bus: Bus) -> None:
    async with ingesting(bus, refusals=5) as ingest:
        await asyncio.gather(*[xadd(bus, id=f"m{n}", recipient="app", priority=9, **NOTE) for n in range(500)])
        await until(lambda: ingest.counts["invalid"] == 500, "all are dead letters")
    assert 5 <= await bus.call("XLEN", bus.keys.replies("HEAR_FC")) < 50


async def test_order_is_kept(clients: Clients, bus: Bus) -> None:
    """I3: one source's records to one recipient at one priority come in the order in which they were added."""
    async with ingesting(bus):
        await asyncio.gather(*[xadd(bus, id=f"m{number:04}", recipient="app", **NOTE) for number in range(500)])
        await empty(bus)
    ids = [fields["id"].decode() for _, fields in await entries(bus, bus.keys.inbox("app", 2))]
    assert ids == [f"m{number:04}" for number in range(500)]


async def test_telemetry_above_the_rate_is_counted_and_reported_exactly(clients: Clients, bus: Bus) -> None:
    """S-144, I5: per source; what is not adopted is reported as exact ranges of entry ids, and commands are not
    counted."""
    sample = {"type": "telemetry", "data": '{"battery_level":85}'}
    async with ingesting(bus, telemetry_rate=20, report_every=0.05) as ingest:
        sent = await asyncio.gather(*[xadd(bus, id=f"t{number}", source="HEAR_FC", **sample) for number in range(200)])
        await xadd(bus, id="other", source="calm", **sample)
        await xadd(bus, id="cmd", recipient="vehicle", priority=3, **NOTE)
        await empty(bus)
        await until(lambda: ingest.statistics()["unreported"] == 0, "all of it is reported")
        limited = ingest.counts["limited"]
    adopted = {fields["id"].decode() for _, fields in await entries(bus, bus.keys.topic("telemetry"))}
    assert "other" in adopted
    assert 20 <= len(adopted) - 1 < 120
    assert limited == 200 - (len(adopted) - 1)
    assert await bus.call("XLEN", bus.keys.inbox("vehicle", 3)) == 1
    place = {entry: number for number, entry in enumerate(sent)}
    lost: set[str] = set()
    for _, fields in await entries(bus, bus.keys.topic("bus.loss")):
        report = Record.from_fields([part for item in fields.items() for part in (item[0].encode(), item[1])]).data
        assert report["stream"] == bus.keys.ingest
        assert report["source"] == "HEAR_FC"
        assert "20 telemetry records a second" in report["reason"]
        assert (report["runs"][0][0], report["runs"][-1][1]) == (report["first"], report["last"])
        for first, last, count in report["runs"]:
            span = sent[place[first] : place[last] + 1]
            assert len(span) == count
            lost |= {f"t{place[entry]}" for entry in span}
    assert lost == {f"t{number}" for number in range(200)} - adopted


async def test_a_key_of_the_wrong_kind_holds_up_nobody(clients: Clients, bus: Bus) -> None:
    """I8, I1: somebody has made a plain key where a stream belongs: what goes there is kept with the reason, the rest
    arrives."""
    await bus.call("SET", bus.keys.topic("broken"), "x")
    await bus.call("SET", bus.keys.inbox("broken", 2), "x")
    async with ingesting(bus):
        await asyncio.gather(
            xadd(bus, id="a", topic="fine", **NOTE),
            xadd(bus, id="b", topic="broken", **NOTE),
            xadd(bus, id="c", recipient="broken", **NOTE),
            xadd(bus, id="d", topic="fine", **NOTE),
        )
        await empty(bus)
    assert [fields["id"] for _, fields in await entries(bus, bus.keys.topic("fine"))] == [b"a", b"d"]
    letters = await dead(bus)
    assert [letter["id"] for letter in letters] == [b"b", b"c"]
    assert all(letter["dead_reason"].startswith(b"the server refused it: WRONGTYPE") for letter in letters)


async def test_what_waited_while_nobody_was_there_is_adopted(clients: Clients, bus: Bus) -> None:
    """I1: raw records outlive the daemon."""
    for number in range(10):
        await xadd(bus, id=f"m{number}", recipient="app", **NOTE)
    async with ingesting(bus):
        await empty(bus)
    assert await bus.call("XLEN", bus.keys.inbox("app", 2)) == 10


async def test_a_full_server_makes_raw_records_wait_not_vanish(own_clients: Clients) -> None:
    """I5, I1: above the memory ceiling nothing is adopted and nothing is lost; it goes on by itself."""
    bus = await own_clients.open("petalbus")
    for _ in range(20):
        await bus.call("XADD", bus.keys.topic("ballast"), "*", "data", "x" * 1_000_000)
    async with ingesting(bus, pause=0.02) as ingest:
        await xadd(bus, id="first", recipient="app", **NOTE)
        await empty(bus)
        await bus.call("CONFIG", "SET", "maxmemory", 100_000_000)
        await xadd(bus, id="second", recipient="app", **NOTE)
        await empty(bus)
        await bus.call("MULTI")
        await bus.call("XADD", bus.keys.ingest, "*", *_flat({"id": "third", "recipient": "app", **NOTE}))
        await bus.call("CONFIG", "SET", "maxmemory", 10_000_000)
        await bus.call("EXEC")
        await until(lambda: "memory ceiling" in ingest._last_error, "the ceiling is felt")
        assert await bus.call("XLEN", bus.keys.inbox("app", 2)) == 2
        await bus.call("CONFIG", "SET", "maxmemory", 100_000_000)
        await empty(bus)
    assert await bus.call("XLEN", bus.keys.inbox("app", 2)) == 3
    assert await dead(bus) == []


async def test_idle_costs_nothing(clients: Clients, bus: Bus) -> None:
    """The ingest waits in one blocking read: no polling."""
    async with ingesting(bus):
        await xadd(bus, id="m", recipient="app", **NOTE)
        await empty(bus)
        before = time.process_time()
        await asyncio.sleep(0.5)
        assert time.process_time() - before < 0.02


def _flat(fields: dict[str, Any]) -> list[Any]:
    return [part for item in fields.items() for part in item]
