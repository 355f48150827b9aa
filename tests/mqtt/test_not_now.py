"""What the broker does not take just then keeps its place: nothing older becomes the last word of a topic."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import orjson
import pytest

from petalbus.handlers.mqtt import egress, words
from petalbus.handlers.mqtt.options import EgressOptions
from petalbus.handlers.mqtt.outgoing import Item
from petalbus.handlers.mqtt.resting import Resting
from petalbus.schemas.record import Record
from petalbus.schemas.stamps import BOOT_ID, boot_clock_ns
from petalbus.schemas.vocabulary import Status

from .test_direct_quotas import Whole, whole
from .test_link import BASE
from support.mqtt_link import until
from support.odd_broker import OddBroker, Published
from support.servers import RealServer

TOPIC = "a/state"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("NOT_NOW_FIRST_S", 0.2), ("NOT_NOW_MOST_S", 0.2), ("_DEADLINE_LOOK_S", 0.02)):
        monkeypatch.setattr(egress, name, value)


def refusing(times: int, code: int = 0x97, *, topic: str = TOPIC) -> Callable[[Published], int]:
    """The first messages of a topic are not taken."""
    left = times

    def puback(message: Published) -> int:
        nonlocal left
        if message.topic != topic or not left:
            return 0
        left -= 1
        return code

    return puback


async def say(link: Whole, said: str, **more: object) -> str:
    data = {"topic": TOPIC, "payload": {"state": said}, "qos": 1, "retain": True, **more}
    return (await link.petal.send(words.APP, words.PUBLISH, data)).id


def came(odd: OddBroker, topic: str = TOPIC) -> list[tuple[str, bool]]:
    return [(orjson.loads(one.payload)["state"], one.retain) for one in odd.published if one.topic == topic]


async def test_what_comes_later_waits_behind_it(odd: OddBroker, server: RealServer, bus_name: str) -> None:
    """S-192: the last value of a topic is the latest; other topics go on."""
    odd.puback = refusing(1)
    async with whole(server, bus_name, odd.port, EgressOptions()) as link:
        await say(link, "flying")
        await until(lambda: link.handler.egress.put_off == 1, lambda: "it is put off")
        names = [await say(link, said) for said in ("landed", "off")]
        other = await link.publish(1)
        await link.becomes(other, Status.COMPLETED)
        assert link.handler.egress.statistics()["waiting"] == 3
        await link.becomes(names[-1], Status.COMPLETED)
        assert came(odd) == [("flying", True), ("flying", True), ("landed", True), ("off", True)]


async def test_one_that_was_overtaken_is_not_retained(odd: OddBroker, server: RealServer, bus_name: str) -> None:
    """Both had left when the first one was refused: it arrives, and is not the topic's value."""
    gate: list[Published] = []
    taken = refusing(1)

    def puback(message: Published) -> int | None:
        gate.append(message)
        return taken(message)

    odd.puback = puback
    async with whole(server, bus_name, odd.port, EgressOptions()) as link:
        await asyncio.gather(*(say(link, said) for said in ("flying", "landed")))
        await until(lambda: len(gate) == 3, lambda: f"{came(odd)}")
        await until(lambda: not link.handler.egress.statistics()["waiting"], lambda: "all have left")
        retained = [said for said, retain in came(odd)[1:] if retain]
        assert retained[-1] == "landed", f"{came(odd)}"


async def test_a_result_stays_behind_its_progress(odd: OddBroker, server: RealServer, bus_name: str) -> None:
    """S-208: the answers to one command, in their order; those to another one do not wait."""
    topic = f"{BASE}/response"
    odd.puback = refusing(2, topic=topic)
    async with whole(server, bus_name, odd.port, EgressOptions()) as link:

        async def answer(message_id: str, said: str) -> str:
            payload = {"messageId": message_id, "state": said}
            data = {"topic": topic, "payload": payload, "qos": 1}
            return (await link.petal.send(words.APP, words.PUBLISH, data)).id

        await answer("1", "half")
        await until(lambda: link.handler.egress.put_off == 1, lambda: "it is put off")
        last = await answer("1", "done")
        await link.becomes(await answer("2", "other"), Status.COMPLETED)
        await link.becomes(last, Status.COMPLETED)
        said = [one for one, _ in came(odd, topic)]
        assert said.count("other") == 2, "it was put off once, too"
        assert [one for one in said if one != "other"] == ["half", "half", "done"]


async def test_a_topic_that_is_never_taken_is_given_up_as_one(
    odd: OddBroker, server: RealServer, bus_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I8: those behind the first do not each wait for as long as it did."""
    monkeypatch.setattr(egress, "NOT_NOW_FIRST_S", 0.01)
    odd.puback = refusing(10_000, 0x83)
    async with whole(server, bus_name, odd.port, EgressOptions()) as link:
        names = [await say(link, str(number)) for number in range(20)]
        for name in names:
            await link.becomes(name, Status.FAILED)
        assert link.handler.egress.put_off <= egress.NOT_NOW_TIMES * 20
        assert not link.handler.egress.statistics()["waiting"]


async def test_one_that_is_never_taken_holds_up_no_other(
    odd: OddBroker, server: RealServer, bus_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I8: where order decides nothing the rest of its topic goes on while it rests, and with it the outbox."""
    for name in ("NOT_NOW_FIRST_S", "NOT_NOW_MOST_S"):
        monkeypatch.setattr(egress, name, 0.6)
    odd.puback = lambda message: 0x83 if b'"bad"' in message.payload else 0
    async with whole(server, bus_name, odd.port, EgressOptions(held=16)) as link:
        bad = await say(link, "bad", retain=False)
        await until(lambda: link.handler.egress.put_off == 1, lambda: "it is put off")
        names = [await say(link, str(number), retain=False) for number in range(30)]
        names.append(await link.publish(1))
        for name in names:
            await link.becomes(name, Status.COMPLETED)
        assert link.handler.egress.put_off < egress.NOT_NOW_TIMES, "it is given up only after them"
        await link.becomes(bad, Status.FAILED)
        assert [said for said, _ in came(odd) if said != "bad"] == [str(number) for number in range(30)]


@pytest.mark.parametrize("retain", [True, False])
async def test_a_topic_that_is_never_taken_leaves_room_for_others(
    odd: OddBroker, server: RealServer, bus_name: str, monkeypatch: pytest.MonkeyPatch, *, retain: bool
) -> None:
    """I8: it has a quarter of the places; the pauses of eight attempts would be 25 s."""
    monkeypatch.setattr(egress, "NOT_NOW_MOST_S", 30.0)
    odd.puback = refusing(10_000, 0x83)
    async with whole(server, bus_name, odd.port, EgressOptions(held=16)) as link:
        names = [await say(link, "0", retain=retain)]
        await until(lambda: link.handler.egress.put_off == 1, lambda: "it is put off")
        for number in range(egress.NOT_NOW_PASSED):
            await link.becomes(await link.publish(number), Status.COMPLETED)
        names += [await say(link, str(number), retain=retain) for number in range(1, 40)]
        await link.becomes(await link.publish(9), Status.COMPLETED)
        if retain:
            for name in names:
                await link.becomes(name, Status.FAILED)


async def test_a_full_broker_says_nothing_against_those_behind(
    odd: OddBroker, server: RealServer, bus_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S-192, S-197: what waited behind one that was given up has all its own attempts, and goes one by one."""
    for name in ("NOT_NOW_FIRST_S", "NOT_NOW_MOST_S"):
        monkeypatch.setattr(egress, name, 0.02)
    turn = 0

    def puback(message: Published) -> int:
        nonlocal turn
        if message.topic != TOPIC or b'"first"' in message.payload:
            return 0x97 if message.topic == TOPIC else 0
        turn += 1
        return 0 if turn % 3 == 0 else 0x97

    odd.puback = puback
    async with whole(server, bus_name, odd.port, EgressOptions()) as link:
        first = await say(link, "first")
        await until(lambda: link.handler.egress.put_off == 1, lambda: "it is put off")
        names = [await say(link, str(number)) for number in range(12)]
        for number in range(egress.NOT_NOW_PASSED):
            await link.becomes(await link.publish(number), Status.COMPLETED)
        await link.becomes(first, Status.FAILED)
        for name in names:
            await link.becomes(name, Status.COMPLETED)
        said = [one for one, retain in came(odd) if one != "first"]
        assert said == [str(number) for number in range(12) for _ in range(3)]


async def test_once_one_of_them_was_taken_the_others_are_not_in_doubt(
    odd: OddBroker, server: RealServer, bus_name: str
) -> None:
    """I8: two after one that was given up: the first is taken, so the second has its attempts."""
    left = {"first": 100, "taken": 0, "once": 1, "last": 0}

    def puback(message: Published) -> int:
        said = orjson.loads(message.payload)["state"]
        left[said] -= 1
        return 0x83 if left[said] >= 0 else 0

    odd.puback = puback
    async with whole(server, bus_name, odd.port, EgressOptions()) as link:
        first = await say(link, "first")
        await until(lambda: link.handler.egress.put_off == 1, lambda: "it is put off")
        names = [await say(link, said) for said in ("taken", "once", "last")]
        await link.becomes(first, Status.FAILED)
        for name in names:
            await link.becomes(name, Status.COMPLETED)
        assert [said for said, retain in came(odd) if retain][-1] == "last", f"{came(odd)}"


async def test_one_whose_time_is_over_says_nothing_against_those_behind(
    odd: OddBroker, server: RealServer, bus_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its deadline ended it, not the broker."""
    monkeypatch.setattr(egress, "NOT_NOW_TIMES", 2)
    monkeypatch.setattr(egress, "NOT_NOW_FIRST_S", 0.4)
    monkeypatch.setattr(egress, "NOT_NOW_MOST_S", 0.4)
    odd.puback = refusing(2, 0x83)
    async with whole(server, bus_name, odd.port, EgressOptions()) as link:
        data = {"topic": TOPIC, "payload": {"state": "late"}, "qos": 1, "retain": True}
        await link.petal.send(words.APP, words.PUBLISH, data, deadline=0.35)
        await until(lambda: link.handler.egress.put_off == 1, lambda: "it is put off")
        name = await say(link, "landed")
        await until(lambda: link.handler.egress.expired == 1, lambda: f"{link.handler.egress.statistics()}")
        await link.becomes(name, Status.COMPLETED)
        assert [said for said, _ in came(odd)] == ["late", "landed", "landed"]


async def test_places_of_a_stream_that_is_gone_say_nothing() -> None:
    """The bus's server came back empty, and its clock is behind: a later value is not taken for an older one."""
    now = boot_clock_ns()
    data = {"topic": TOPIC, "payload": 1, "retain": True}

    def item(place: str, later_s: int) -> Item:
        mono = now + later_s * 10**9
        raw = orjson.dumps(data)
        record = Record(id=place, type=words.PUBLISH, source="petal", mono=mono, boot_id=BOOT_ID, data=raw)
        record.stream_id = place
        return Item.of(record, 0, response="response")

    resting = Resting(lambda _item: None)
    resting.confirmed(item("9000-0", 0), TOPIC)
    assert resting.is_overtaken(item("8000-0", -600), TOPIC), "however long it has waited"
    assert resting.is_overtaken(item("5000-0", 60), TOPIC)
    after = item("5000-0", 200)
    assert not resting.is_overtaken(after, TOPIC)
    resting.confirmed(after, TOPIC)
    assert resting.is_overtaken(item("4999-0", 1), TOPIC), "it is the latest now"
