"""Retention: history has its size, what is unread stays, and what goes all the same is reported exactly."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.outbox import Outbox
from petalbus.daemon.services.own_lane import own_lane
from petalbus.daemon.services.retention import Keep, Retention
from petalbus.daemon.services.streams import Kind, Stream, find_streams
from petalbus.schemas.record import Record
from petalbus.schemas.vocabulary import Priority
from services.raw import Clients, entries, keeping, until

NODE = 100
"""Entries in one node of a stream: history is cut by whole nodes."""


@pytest.fixture
async def lane(bus: Bus) -> AsyncIterator[Outbox]:
    async with own_lane(bus) as outbox:
        yield outbox


async def fill(bus: Bus, key: str, count: int, *, size: int = 10) -> list[str]:
    """So many entries; their ids."""
    connection = bus._outbox.lane.connection
    assert connection is not None
    calls = [connection.call("XADD", key, "*", "n", number, "data", "x" * size) for number in range(count)]
    return [(await call).decode() for call in calls]


async def losses(bus: Bus) -> list[dict[str, Any]]:
    """The reports, each a valid record."""
    found = []
    for entry, fields in await entries(bus, bus.keys.topic("bus.loss")):
        flat = [part for name, value in fields.items() for part in (name.encode(), value)]
        record = Record.from_fields(flat, stream_id=entry)
        assert (record.type, record.source) == ("bus.loss", "petalbus")
        assert record.mono is not None
        found.append(record.data)
    return found


async def trim(
    bus: Bus, lane: Outbox, keep: Keep, *, now: float = 0.0, present: tuple[str, ...] = ("app",)
) -> Retention:
    """One pass."""
    retention = Retention(bus.keys, app="petalbus", keep=keep, gone_after=100)
    streams = await find_streams(lane, bus.keys)
    await retention.trim(lane, streams, frozenset(present), 0.0)
    if now:
        await retention.trim(lane, streams, frozenset(present), now)
    return retention


async def left(bus: Bus, key: str) -> list[str]:
    return [entry for entry, _ in await entries(bus, key)]


async def test_the_newest_stay_as_history(bus: Bus, lane: Outbox) -> None:
    """S-158: memory is bounded by number of entries, never by time."""
    topic = bus.keys.topic("t")
    ids = await fill(bus, topic, 1000)
    await trim(bus, lane, Keep(topics=300))
    kept = await left(bus, topic)
    assert kept == ids[-len(kept) :]
    assert 300 <= len(kept) < 300 + NODE
    assert await losses(bus) == []


async def test_nothing_unread_is_trimmed(bus: Bus, lane: Outbox) -> None:
    """Retention never trims what a live group has not acknowledged: MINID below its last delivered entry."""
    topic = bus.keys.topic("t")
    ids = await fill(bus, topic, 1000)
    await bus.call("XGROUP", "CREATE", topic, "app", 0)
    await bus.call("XREADGROUP", "GROUP", "app", "c", "COUNT", 450, "NOACK", "STREAMS", topic, ">")
    await trim(bus, lane, Keep(topics=10))
    kept = await left(bus, topic)
    assert kept == ids[-len(kept) :]
    assert ids[449] in kept, "the last one read stays, and all behind it"
    assert len(kept) < 550 + NODE


async def test_nothing_pending_is_trimmed(bus: Bus, lane: Outbox) -> None:
    """An entry that is delivered and not acknowledged stays, and everything behind it."""
    inbox = bus.keys.inbox("app", 2)
    ids = await fill(bus, inbox, 1000)
    await bus.call("XGROUP", "CREATE", inbox, "inbox", 0)
    await bus.call("XREADGROUP", "GROUP", "inbox", "c", "COUNT", 900, "STREAMS", inbox, ">")
    await bus.call("XACK", inbox, "inbox", *(entry for number, entry in enumerate(ids[:900]) if number != 333))
    await trim(bus, lane, Keep(inboxes=10))
    assert ids[333] in await left(bus, inbox)
    await bus.call("XACK", inbox, "inbox", ids[333])
    await trim(bus, lane, Keep(inboxes=10))
    kept = await left(bus, inbox)
    assert ids[333] not in kept
    assert ids[899] in kept
    assert await losses(bus) == []


async def test_the_slowest_of_several_groups_counts(bus: Bus, lane: Outbox) -> None:
    topic = bus.keys.topic("t")
    ids = await fill(bus, topic, 600)
    for group, read in (("app", 600), ("app.slow", 200), ("app.new", 0)):
        await bus.call("XGROUP", "CREATE", topic, group, 0)
        if read:
            await bus.call("XREADGROUP", "GROUP", group, "c", "COUNT", read, "NOACK", "STREAMS", topic, ">")
    await trim(bus, lane, Keep(topics=10))
    assert await left(bus, topic) == ids
    await bus.call("XGROUP", "DESTROY", topic, "app.new")
    await trim(bus, lane, Keep(topics=10))
    assert ids.index((await left(bus, topic))[0]) <= 199


async def test_a_group_of_an_app_that_is_gone_for_long_stops_counting(bus: Bus, lane: Outbox) -> None:
    """What it had not read is reported: stream, first and last id, count, reason, and who had not read it."""
    topic = bus.keys.topic("t")
    ids = await fill(bus, topic, 1000)
    await bus.call("XGROUP", "CREATE", topic, "old.view", 0)
    await bus.call("XREADGROUP", "GROUP", "old.view", "c", "COUNT", 150, "STREAMS", topic, ">")
    await trim(bus, lane, Keep(topics=300), now=99, present=())
    assert len(await left(bus, topic)) == 1000, "not gone for long enough"
    await trim(bus, lane, Keep(topics=300), now=101, present=("old",))
    assert len(await left(bus, topic)) == 1000, "its application is there"
    retention = await trim(bus, lane, Keep(topics=300), now=101, present=("older", "ol"))
    kept = await left(bus, topic)
    assert 300 <= len(kept) < 300 + NODE
    assert kept == ids[-len(kept) :]
    reports = await losses(bus)
    assert {report["stream"] for report in reports} == {topic}
    assert {tuple(report["unread_by"]) for report in reports} == {("old.view",)}
    assert "gone for 100 s: old.view" in reports[0]["reason"]
    assert reported(reports, ids) == ids[: -len(kept)]
    assert retention.lost == 1000 - len(kept)


def reported(reports: list[dict[str, Any]], ids: list[str]) -> list[str]:
    """The ids that reports declare lost; each range must hold exactly as many as it says."""
    lost: list[str] = []
    for report in reports:
        span = ids[ids.index(report["first"]) : ids.index(report["last"]) + 1]
        assert len(span) == report["count"]
        lost += span
    return lost


@pytest.mark.parametrize("level", [Priority.HIGH, Priority.CRITICAL])
async def test_urgent_commands_wait_for_their_app_for_ever(bus: Bus, lane: Outbox, level: Priority) -> None:
    inbox = bus.keys.inbox("away", level)
    ids = await fill(bus, inbox, 500)
    await bus.call("XGROUP", "CREATE", inbox, "inbox", 0)
    await trim(bus, lane, Keep(inboxes=10), now=1e9, present=())
    assert await left(bus, inbox) == ids


async def test_dead_letters_have_a_limit_and_their_loss_is_said(bus: Bus, lane: Outbox) -> None:
    ids = await fill(bus, bus.keys.dead("app"), 250)
    await trim(bus, lane, Keep(dead=100))
    kept = await left(bus, bus.keys.dead("app"))
    assert kept == ids[-100:]
    reports = await losses(bus)
    assert reported(reports, ids) == ids[:150]
    assert reports[0]["reason"] == "more than 100 dead letters of app"


async def test_each_kind_of_stream_has_its_size(bus: Bus, lane: Outbox) -> None:
    keys = bus.keys
    keep = Keep(topics=50, by_topic={"long": 900}, bus_topics=500, inboxes=100, replies=200, control=10)
    sizes = {
        keys.topic("t"): 50,
        keys.topic("long"): 900,
        keys.topic("bus.loss"): 500,
        keys.inbox("app", 4): 100,
        keys.replies("app"): 200,
        keys.control("app"): 10,
        keys.ingest: 1000,
    }
    for key in sizes:
        await fill(bus, key, 1000)
    await trim(bus, lane, keep)
    for key, size in sizes.items():
        assert size <= await bus.call("XLEN", key) < size + NODE, key


async def test_foreign_keys_are_nobodys_business(bus: Bus, lane: Outbox) -> None:
    await fill(bus, bus.keys.prefix + "queue:app:outbox", 300)
    await fill(bus, f"x{bus.keys.prefix}topic:t", 300)
    await trim(bus, lane, Keep(topics=1, inboxes=1, replies=1, control=1, dead=1))
    assert await bus.call("XLEN", bus.keys.prefix + "queue:app:outbox") == 300
    assert await bus.call("XLEN", f"x{bus.keys.prefix}topic:t") == 300
    await bus.call("DEL", f"x{bus.keys.prefix}topic:t")


def test_stream_names_are_read(bus_name: str) -> None:
    from petalbus.daemon.bus.keys import Keys

    keys = Keys(bus_name)
    assert Stream.of(keys.inbox("a.b/c", 3), keys)[1:] == (Kind.INBOX, "a.b/c", Priority.HIGH)
    assert Stream.of(keys.topic("mavlink.rx"), keys)[1:] == (Kind.TOPIC, "mavlink.rx", None)
    assert Stream.of(keys.dead("x"), keys).kind is Kind.DEAD
    assert Stream.of(keys.replies("x"), keys).kind is Kind.REPLIES
    assert Stream.of(keys.prefix + "queue:x:inbox:9", keys).kind is Kind.OTHER


async def test_the_janitor_trims_beside_a_subscriber_and_it_sees_everything(clients: Clients, bus: Bus) -> None:
    """A live subscriber reads every record of a topic that is trimmed all the time."""
    gcs = await clients.open("gcs")
    async with keeping(bus, keep=Keep(topics=20), look_every=0.01, trim_every=0.01) as janitor:
        subscription = gcs.subscribe("t", start="oldest")
        async with subscription:
            receipts = [await bus.publish("t", "note", {"n": number}) for number in range(2000)]
            seen = []
            async for record in subscription:
                seen.append(record.data["n"])
                if len(seen) == len(receipts):
                    break
        assert seen == list(range(2000))
        await until(lambda: janitor.retention.trimmed > 1500, "history is cut")
    assert await losses(bus) == []
