"""Topics for which a broker ends the connection are found; what networks and proxies do to a link accuses none."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import pytest

from petalbus.handlers.mqtt.direct import suspects
from petalbus.handlers.mqtt.direct.errors import Blame
from petalbus.handlers.mqtt.direct.suspects import Suspects
from petalbus.handlers.mqtt.transport import LinkLost, PublishRefused

from support.mqtt_link import SECONDS, Running, link, outgoing, until
from support.odd_broker import OddBroker, Published


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize(("version", "code", "most"), [("3.1.1", None, 5), ("5", 0x87, 3), ("5", 0x83, 5)])
async def test_a_topic_that_ends_the_connection_is_quarantined(
    odd: OddBroker, qos: int, version: Literal["5", "3.1.1"], code: int | None, most: int
) -> None:
    """A forbidden topic closes the connection, as AWS IoT does: it is found and refused from then on; others go on."""
    odd.close_on, odd.close_code = {"forbidden"}, code
    topics = ["a", "b", "forbidden", "c", "a"]
    async with link(odd.port, version=version) as running:
        await running.connected()
        refused: list[tuple[str, int | None, bool]] = []
        sent: list[str] = []
        async with asyncio.timeout(SECONDS):
            while not refused or len(sent) < 20:
                for number, topic in enumerate(topics):
                    await running.transport.room()
                    try:
                        await running.transport.submit(outgoing(number, topic, qos=qos))
                        sent.append(topic)
                    except PublishRefused as error:
                        refused.append((topic, error.code, "'forbidden'" in str(error)))
                    except LinkLost:
                        break
        assert set(refused) == {("forbidden", 0x87, True)}
        assert running.transport.describe()["quarantined"] == ["forbidden"]
        assert {"a", "b", "c"} <= set(sent[-20:])
        connections = len(odd.greetings)
        await running.send(outgoing(1, "a"))
        assert len(odd.greetings) == connections <= most


async def until_taken(running: Running, topic: str) -> int:
    """Send a message again until the broker has it; how often that was."""
    for times in range(1, 10):
        try:
            await running.send(outgoing(1, topic))
        except LinkLost:
            continue
        return times
    raise AssertionError("it was lost nine times")


@pytest.mark.parametrize(
    ("version", "end", "cuts"), [("5", "drop", 4), ("5", "reset", 4), ("3.1.1", "reset", 4), ("3.1.1", "drop", 3)]
)
async def test_connections_that_break_accuse_no_topic(
    odd: OddBroker, version: Literal["5", "3.1.1"], end: str, cuts: int
) -> None:
    """S-192: each time right after the same topic was sent: by a router, a proxy, another program. It arrives."""
    left = cuts

    def cut(message: Published) -> int | None:
        nonlocal left
        if message.topic != "response" or not left:
            return 0
        left -= 1
        getattr(odd, end)()
        return None

    odd.puback = cut
    async with link(odd.port, version=version, retry_most=0.05) as running:
        assert await until_taken(running, "response") == cuts + 1
        assert running.transport.describe()["quarantined"] == []
        assert await running.send(outgoing(2, "response")) == 0


async def test_a_broker_that_goes_away_accuses_no_topic(odd: OddBroker) -> None:
    """Killed twice while the same topic was under way: the end of a broker is no judgement on what was sent."""
    odd.puback = lambda _: None
    known = Suspects()
    known.closed(["out"], None, Blame.JUDGED)
    known.closed(["out"], "out", Blame.FORBIDDEN)
    known.unreachable()
    assert known.reached() is None
    assert not known.quarantined("out")
    async with link(odd.port, version="3.1.1", retry_most=0.05) as running:
        for _ in range(4):
            await running.connected()
            future = running.transport.submit(outgoing(1))
            await until(lambda: odd.published, lambda: "it is under way")
            odd.published.clear()
            odd.connack_codes = [3]
            odd.drop()
            with pytest.raises(LinkLost):
                await future
            await until(lambda: not odd.connack_codes, lambda: "an attempt")
        odd.puback = lambda _: 0
        assert await running.send(outgoing(2)) == 0


def accuse(known: Suspects, blame: Blame = Blame.JUDGED) -> Any:
    """A connection ends while only "out" is under way, and the broker lets us in again."""
    known.closed(["out"], "out", blame)
    return known.reached()


def test_three_times_in_a_row_are_enough_and_two_are_not() -> None:
    """Or once, with the broker's own word; a message that passes begins anew."""
    known = Suspects()
    assert [accuse(known), accuse(known)] == [None, None]
    known.passed("out")
    assert [accuse(known), accuse(known), accuse(known)] == [None, None, "out"]
    assert known.quarantined("out")
    assert accuse(Suspects(), Blame.FORBIDDEN) == "out"
    other = Suspects()
    assert [accuse(other, Blame.CLOSED) for _ in range(9)] == [None] * 9
    assert other.wary("out")


def test_a_quarantine_ends_and_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Policies change: after a while one message is tried again, alone. Half a minute at first, ten at last."""
    now = 1000.0
    monkeypatch.setattr(suspects.time, "monotonic", lambda: now)
    known, spans = Suspects(), []
    for _ in range(3):
        accuse(known)
    for _ in range(6):
        began = now
        while known.quarantined("out"):
            now += 1.0
        spans.append(now - began)
        assert known.suspected("out")
        assert accuse(known) == "out", "one more time is enough"
    assert spans == [30, 60, 120, 240, 480, 600]
    now += 600
    assert not known.quarantined("out")
    known.passed("out")
    assert [accuse(known) for _ in range(3)] == [None, None, "out"]
    now += 30
    assert not known.quarantined("out"), "it begins anew"
