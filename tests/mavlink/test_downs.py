"""Orders to come down, compared with each other and with what was given before them (S-003, I4)."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import Any

import pytest

from mavlink.drive import DISARM, Connect, brief, running, silent, steps_of
from mavlink.peer import ARM_DISARM, LAND, SET_MODE, Peer
from petalbus.handlers.mavlink.errors import CommandOutcomeUnknown, OrderOvertaken
from petalbus.handlers.mavlink.flight.commands import CommandTimes
from petalbus.handlers.mavlink.flight.downs import Downs, Given
from petalbus.handlers.mavlink.flight.orders import Order, Verb
from petalbus.schemas.stamps import boot_clock_ns

LOITER, RETURN = 17, 20
FORCE = 21196.0
PX4_HOLD = 4 << 16 | 3 << 24
SECOND = 1_000_000_000
PATIENT = CommandTimes(answer=3.0, repeat=0.2, confirm=3.0)


def test_what_is_given_after_an_order_to_come_down_is_not_ended_by_it() -> None:
    """Its stamp may be a second too early; but it is never given later than when it is looked at."""
    downs, base = Downs(time.monotonic), boot_clock_ns() - 60 * SECOND
    before = downs.since(Given(base))
    downs.note(Given(base, "remote"))
    assert before()
    assert downs.since(Given(base + SECOND - 1))()
    assert not downs.since(Given(base + SECOND))()
    assert not downs.since(None)(), "nobody knows when it was given"
    downs.note(Given(base - SECOND))
    assert downs.since(Given(base))(), "the newest counts"
    unknown = downs.since(None)
    now = boot_clock_ns()
    downs.note(None)
    assert unknown()
    assert downs.since(Given(now - 1))(), "one of which nobody knows when it was given counts from when it came"
    downs.note(Given(boot_clock_ns()))
    assert not downs.since(Given(boot_clock_ns() + 1))()


def test_an_apps_own_orders_are_compared_exactly() -> None:
    """It says hold and goto one after the other, and waits for no answer: both are of one clock."""
    downs, now = Downs(time.monotonic), boot_clock_ns()
    downs.note(Given(now - 50, "petal"))
    assert not downs.since(Given(now - 49, "petal"))()
    assert downs.since(Given(now - 51, "petal"))()
    assert downs.since(Given(now - 49, "station"))()
    for number in range(200):
        downs.note(Given(now - 50, f"app{number}"))
    assert len(downs._given) <= 64
    assert downs.since(Given(now - 49, "petal"))(), "forgotten, and on the safe side"


async def test_an_older_hold_does_not_leave_after_a_newer_return(connected: Connect) -> None:
    """A change of mode is not answered, so the hold waits its second; the return does not, and was told as done."""

    def obey(peer: Peer, message: Any) -> None:
        if message.get_type() == "COMMAND_LONG" and message.command != SET_MODE:
            peer.ack(message.command)

    station, peer = await connected(on_message=obey, times=PATIENT)
    mission = running(station.vehicle, Order(Verb.MODE, mode="mission"))
    await peer.until(lambda: peer.commands(SET_MODE))
    hold = running(station.vehicle, Order(Verb.HOLD))
    await asyncio.sleep(0.2)
    assert brief(await steps_of(station.vehicle, Order(Verb.RETURN))) == [("return", 0, True)]
    with pytest.raises(OrderOvertaken, match="hold was given up: a later order"):
        await hold
    assert [one.command for one in peer.commands()] == [SET_MODE, RETURN]
    with pytest.raises(CommandOutcomeUnknown):
        await mission


async def test_a_hold_that_is_said_again_leaves(connected: Connect) -> None:
    """The second one does not keep the first back, which leaves earlier."""
    station, peer = await connected(on_message=silent, times=PATIENT)
    mission = running(station.vehicle, Order(Verb.MODE, mode="mission"))
    await peer.until(lambda: peer.commands(SET_MODE))
    holds = []
    for _ in range(6):
        holds.append(running(station.vehicle, Order(Verb.HOLD)))
        await asyncio.sleep(0.3)
    assert len(peer.commands(SET_MODE)) >= 2
    for task in (*holds, mission):
        task.cancel()
    await asyncio.gather(*holds, mission, return_exceptions=True)


async def test_raw_orders_to_come_down_keep_their_order(connected: Connect) -> None:
    station, _ = await connected()
    vehicle, now = station.vehicle, boot_clock_ns()
    hold = vehicle.foreign_command(LOITER, [], given=Given(now))
    disarm = vehicle.foreign_command(ARM_DISARM, [0.0], given=Given(now))
    land = vehicle.foreign_command(LAND, [], given=Given(now))
    land()
    disarm()
    with pytest.raises(OrderOvertaken, match="NAV_LOITER_UNLIM was given up"):
        hold()
    with pytest.raises(OrderOvertaken, match="NAV_RETURN_TO_LAUNCH"):
        vehicle.foreign_command(RETURN, [], given=Given(now - 60 * SECOND))()  # looked at later, and yet the older one
    with pytest.raises(OrderOvertaken, match="SET_MODE"):
        vehicle.foreign_mode(PX4_HOLD, given=Given(now - 60 * SECOND))
    vehicle.foreign_mode(PX4_HOLD, given=Given(boot_clock_ns()))
    vehicle.foreign_command(LAND, [], given=Given(now - 60 * SECOND))()
    vehicle.foreign_command(ARM_DISARM, [0.0], given=Given(now - 60 * SECOND))()
    vehicle.foreign_command(ARM_DISARM, [0.0, FORCE], given=Given(now - 60 * SECOND))()


async def test_nothing_ends_a_disarm_and_no_hold_a_landing(connected: Connect) -> None:
    """By its stamp each one is older than the one before it."""
    station, peer = await connected()
    now = boot_clock_ns()
    for place, order in enumerate((Order(Verb.HOLD), Order(Verb.LAND), DISARM)):
        async with aclosing(station.vehicle.run(order, given=Given(now - place * 60 * SECOND))) as steps:
            assert [step.ack.result async for step in steps] == [0]
    assert [one.command for one in peer.commands()] == [SET_MODE, LAND, ARM_DISARM]
