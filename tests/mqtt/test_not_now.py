"""What the broker does not take just then keeps its place: nothing older becomes the last word of a topic."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import orjson
import pytest

from petalbus.handlers.mqtt import egress, words
from petalbus.handlers.mqtt.options import EgressOptions
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
