"""Topics: every subscriber gets everything, also what came while it was away. On a real server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from bus.clients import Clients, until
from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.subscription import Subscription
from petalbus.schemas.compact import MAX_BOOTS, CompactEntry, CompactForm
from petalbus.schemas.record import Record
from petalbus.schemas.stamps import boot_clock_ns

from support.servers import RealServer


async def take(subscription: Subscription, count: int) -> list[Record]:
    """The next records; the last one is acknowledged too."""
    records: list[Record] = []
    async with asyncio.timeout(10):
        async for record in subscription:
            records.append(record)
            if len(records) == count:
                break
    return records


async def collect(subscription: Subscription, into: list[Any]) -> None:
    """Everything that comes, as it comes."""
    async for record in subscription:
        into.append(record.data)  # noqa: PERF401  # somebody watches the list grow


async def test_every_subscriber_gets_every_record_in_order(clients: Clients) -> None:
    """S-147: two apps, and two subscriptions of one app under names of their own; the payload as it was published."""
    gcs = await clients.open("gcs")
    one, two = await clients.open("one"), await clients.open("two")
    lists: list[list[int]] = [[], [], []]
    subscriptions = [one.subscribe("news"), two.subscribe("news"), two.subscribe("news", name="second")]
    for subscription in subscriptions:
        await subscription.open()
    tasks = [
        asyncio.create_task(collect(subscription, found), name="collect")
        for subscription, found in zip(subscriptions, lists, strict=True)
    ]
    await asyncio.gather(*(gcs.publish("news", "n", n) for n in range(1000)))
    await until(lambda: all(len(found) == 1000 for found in lists), "all have all")
    assert lists == [list(range(1000))] * 3
    for subscription in subscriptions:
        await subscription.aclose()
    await asyncio.gather(*tasks)


async def test_a_subscriber_catches_up_after_a_restart(clients: Clients) -> None:
    """S-147: what was published while it was away, and what it had not acknowledged, comes at its next start."""
    gcs, app = await clients.open("gcs"), await clients.open("app")
    async with app.subscribe("news") as news:
        await gcs.publish("news", "n", 1)
        await gcs.publish("news", "n", 2)
        await gcs.publish("news", "n", 3)
        records = aiter(news)
        assert (await anext(records)).data == 1
        assert (await anext(records)).data == 2  # taken, and not finished
    await app.close()
    await gcs.publish("news", "n", 4)
    app = await clients.open("app")
    async with app.subscribe("news") as news:
        records = aiter(news)
        assert [(await anext(records)).data for _ in range(3)] == [2, 3, 4]


async def test_where_a_new_subscription_starts(clients: Clients) -> None:
    """New, oldest, or behind a stream id; a second start of the same group goes on where it was, whatever is asked."""
    gcs = await clients.open("gcs")
    receipts = [await gcs.publish("news", "n", n) for n in range(5)]
    for app, start, expected in (("a", "oldest", 0), ("b", receipts[2].stream_id, 3), ("c", "new", 5)):
        bus = await clients.open(app)
        async with bus.subscribe("news", start=start) as news:
            await gcs.publish("news", "n", 5) if app == "c" else None
            assert (await take(news, 1))[0].data == expected
    bus = await clients.open("a")
    async with bus.subscribe("news", start="new", name="again") as news:
        assert not await _comes(news)


async def _comes(subscription: Subscription) -> bool:
    waiting = asyncio.ensure_future(anext(aiter(subscription)))
    done, _ = await asyncio.wait([waiting], timeout=0.1)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    return bool(done)


async def test_what_was_handled_is_acknowledged_and_nothing_else(clients: Clients, server: RealServer) -> None:
    """Acknowledged when the next one is asked for; the group's pending list is empty in the end."""
    gcs, app = await clients.open("gcs"), await clients.open("app")
    found: list[int] = []
    async with app.subscribe("news", start="oldest") as news:
        task = asyncio.create_task(collect(news, found), name="collect")
        await asyncio.gather(*(gcs.publish("news", "n", n) for n in range(300)))
        await until(lambda: len(found) == 300, "all are taken")
    await task
    await until(
        lambda: server.command("XPENDING", app.keys.topic("news"), "app")["pending"] == 0, "all are acknowledged"
    )


async def test_one_group_is_subscribed_once_in_a_process(clients: Clients) -> None:
    """A second subscription without a name is refused with what to do; after the first one's end it is allowed."""
    app = await clients.open("app")
    async with app.subscribe("news"):
        with pytest.raises(ValueError, match="give this subscription a name"):
            app.subscribe("news")
    async with app.subscribe("news"):
        pass


async def test_subscriptions_that_ended_are_forgotten(clients: Clients) -> None:
    """Everything is bounded: a hundred short subscriptions leave none behind."""
    app = await clients.open("app")
    for number in range(100):
        async with app.subscribe("news", name=f"n{number}"):
            pass
    assert len(app.statistics()["subscriptions"]) <= 1


async def test_an_entry_that_is_no_record_is_counted_and_passed_over(clients: Clients) -> None:
    """I8: a foreign program's nonsense in a topic is shown and counted; those behind it arrive."""
    gcs, app = await clients.open("gcs"), await clients.open("app")
    async with app.subscribe("news") as news:
        await gcs.call("XADD", gcs.keys.topic("news"), "*", "what", "ever")
        await gcs.call("XADD", gcs.keys.topic("news"), "*", "k", "X", "d", "no form was declared")
        await gcs.publish("news", "n", 1)
        assert [record.data for record in await take(news, 1)] == [1]
        assert news.invalid == 2


async def test_trimmed_entries_are_reported_as_lost_not_delivered_as_empty(
    clients: Clients, server: RealServer
) -> None:
    """I5: what was trimmed away under a subscriber is counted and does not stop it."""
    gcs, app = await clients.open("gcs"), await clients.open("app")
    async with app.subscribe("news", start="oldest") as news:
        for number in range(3):
            await gcs.publish("news", "n", number)
        assert (await anext(aiter(news))).data == 0
        await until(
            lambda: server.command("XPENDING", app.keys.topic("news"), "app")["pending"] == 3, "all are delivered"
        )
    server.command("XTRIM", gcs.keys.topic("news"), "MAXLEN", 1)
    async with app.subscribe("news", name=None) as again:
        assert [record.data for record in await take(again, 1)] == [2]
        assert again.lost == 2


FORM = CompactForm("mavlink.rx", "mavlink.", "fc", names={"30": "ATTITUDE"})


async def test_a_compact_topic_gives_full_records(clients: Clients, server: RealServer) -> None:
    """What is constant lies beside the stream, an entry holds three fields, the subscriber sees whole records."""
    gcs, app = await clients.open("gcs"), await clients.open("app")
    mono = boot_clock_ns()
    async with app.subscribe("mavlink.rx") as frames:
        ids = await gcs.publish_compact(FORM, [CompactEntry("30", mono + n, bytes([n])) for n in range(10)])
        records = await take(frames, 10)
    assert [record.stream_id for record in records] == ids
    assert [record.data for record in records] == [bytes([n]) for n in range(10)]
    first = records[0]
    assert (first.type, first.source, first.mono, first.boot_id) == ("mavlink.ATTITUDE", "fc", mono, FORM.boot_id)
    assert first.id == f"mavlink.rx@{ids[0]}"
    ((_, fields),) = server.command("XRANGE", gcs.keys.topic("mavlink.rx"), ids[0], ids[0])
    assert len(fields) == 3


async def test_a_new_form_of_a_compact_topic_is_noticed(clients: Clients) -> None:
    """The source restarts and declares new names: the subscriber that stayed reads them right."""
    gcs, app = await clients.open("gcs"), await clients.open("app")
    async with app.subscribe("mavlink.rx") as frames:
        records = aiter(frames)
        await gcs.publish_compact(FORM, [CompactEntry("30", 1, b"")])
        assert (await anext(records)).type == "mavlink.ATTITUDE"
        newer = CompactForm("mavlink.rx", "mavlink.", "fc", names={"30": "ATTITUDE", "33": "GLOBAL_POSITION_INT"})
        restarted = await clients.open("gcs")
        await restarted.publish_compact(newer, [CompactEntry("33", 2, b"")])
        assert (await anext(records)).type == "mavlink.GLOBAL_POSITION_INT"


def booted(boot_id: str) -> CompactForm:
    """The form as a publisher of that boot declares it."""
    return CompactForm("mavlink.rx", "mavlink.", "fc", names={"30": "ATTITUDE"}, boot_id=boot_id)


async def boots_of(bus: Bus) -> list[list[str]]:
    """The list beside the topic."""
    found: list[list[str]] = json.loads(await bus.call("HGET", bus.keys.form("mavlink.rx"), "boots"))
    return found


async def test_compact_entries_keep_their_boot_across_reboots(clients: Clients) -> None:
    """I9: who reads the history of two boots sees which times belong to which; a restart in a boot adds nothing."""
    ids: list[str] = []
    for number, boot in enumerate(("boot-a", "boot-a", "boot-b", "boot-a")):
        source = await clients.open("fc")
        ids += await source.publish_compact(booted(boot), [CompactEntry("30", number, b"")] * 2)
        await source.close()
    app = await clients.open("app")
    async with app.subscribe("mavlink.rx", start="oldest") as frames:
        records = await take(frames, 8)
    assert [record.boot_id for record in records] == [*["boot-a"] * 4, *["boot-b"] * 2, *["boot-a"] * 2]
    after = [f"{ms}-{int(number) + 1}" for ms, number in (ids[at].split("-") for at in (3, 5))]
    assert await boots_of(app) == [["0-1", "boot-a"], [after[0], "boot-b"], [after[1], "boot-a"]]


async def test_a_subscriber_that_stayed_notices_the_sources_reboot(clients: Clients) -> None:
    """I9: it has read the declaration long before; the boot clock that begins anew tells it to read it again."""
    app = await clients.open("app")
    async with app.subscribe("mavlink.rx") as frames:
        records = aiter(frames)
        for boot, mono in (("boot-a", 9 * 10**12), ("boot-b", 3 * 10**9)):
            source = await clients.open("fc")
            await source.publish_compact(booted(boot), [CompactEntry("30", mono, b"")])
            assert (await anext(records)).boot_id == boot
            await source.close()


async def test_publishers_that_declare_at_once_do_not_lose_a_boot(clients: Clients) -> None:
    """Twenty programs of ten boots: every change is in the list, and the entries that follow belong to the last."""
    sources = [await clients.open("fc") for _ in range(20)]
    entry = CompactEntry("30", 1, b"")
    await asyncio.gather(
        *(source.publish_compact(booted(f"boot-{number % 10}"), [entry]) for number, source in enumerate(sources))
    )
    listed = await boots_of(sources[0])
    assert {boot for _, boot in listed} == {f"boot-{number}" for number in range(10)}
    places = [tuple(map(int, first.split("-"))) for first, _ in listed]
    assert places == sorted(places)


async def test_the_list_of_boots_is_bounded(clients: Clients) -> None:
    """The oldest are forgotten; their entries are read without a boot rather than with a wrong one."""
    source = await clients.open("fc")
    for number in range(MAX_BOOTS + 2):
        form = booted(f"boot-{number}")
        other = await clients.open("fc", presence=False)
        await other.publish_compact(form, [CompactEntry("30", number, b"")])
        await other.close()
    assert [boot for _, boot in await boots_of(source)] == [f"boot-{number}" for number in range(2, MAX_BOOTS + 2)]
    async with source.subscribe("mavlink.rx", start="oldest") as frames:
        assert [record.boot_id for record in await take(frames, 4)] == [None, None, "boot-2", "boot-3"]


async def test_a_declaration_of_one_boot_is_read_and_gets_its_list(clients: Clients) -> None:
    """As an earlier version stored it: its boot is that of all entries, until the next boot begins."""
    app = await clients.open("app")
    old = [part for item in booted("boot-a").to_hash().items() for part in item]
    await app.call("HSET", app.keys.form("mavlink.rx"), *old)
    await app.call("XADD", app.keys.topic("mavlink.rx"), "*", *CompactEntry("30", 1, b"").to_fields())
    async with app.subscribe("mavlink.rx", start="oldest") as frames:
        assert [record.boot_id for record in await take(frames, 1)] == ["boot-a"]
    await app.publish_compact(booted("boot-b"), [CompactEntry("30", 1, b"")])
    async with app.subscribe("mavlink.rx", start="oldest", name="again") as frames:
        assert [record.boot_id for record in await take(frames, 2)] == ["boot-a", "boot-b"]


async def test_a_topic_is_declared_again_after_a_reconnection(clients: Clients) -> None:
    """What the server lost in its last seconds would make every later entry unreadable."""
    gcs = await clients.open("gcs")
    await gcs.publish_compact(FORM, [CompactEntry("30", 1, b"")])
    await gcs.call("DEL", gcs.keys.form("mavlink.rx"))
    connects = gcs.statistics()["command"]["connects"]
    other = await clients.open("gcs")
    await other.call("CLIENT", "KILL", "ID", await gcs.call("CLIENT", "ID"))
    await until(lambda: gcs.statistics()["command"]["connects"] > connects, "it is connected again")
    await gcs.publish_compact(FORM, [CompactEntry("30", 2, b"")])
    assert await boots_of(other)


async def test_broadcast_reaches_every_application(clients: Clients) -> None:
    """S-095: the topic ``broadcast``."""
    gcs = await clients.open("gcs")
    apps: list[Bus] = [await clients.open(name) for name in ("a", "b", "c")]
    heard: list[Any] = []
    subscriptions = [await app.subscribe("broadcast").open() for app in apps]
    tasks = [asyncio.create_task(collect(one, heard), name="collect") for one in subscriptions]
    await gcs.broadcast("alert", {"severity": "critical", "message": "land now"})
    await until(lambda: len(heard) == 3, "all heard it")
    assert {one["message"] for one in heard} == {"land now"}
    for subscription in subscriptions:
        await subscription.aclose()
    await asyncio.gather(*tasks)
