"""Runs orders in tests and tells briefly what came of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from mavlink.peer import Peer
from petalbus.handlers.mavlink.flight.orders import Order, Verb
from petalbus.handlers.mavlink.flight.procedures import Step
from petalbus.handlers.mavlink.flight.vehicle import Vehicle

ARM, DISARM, STOP = Order(Verb.ARM), Order(Verb.DISARM), Order(Verb.EMERGENCY_STOP)
Connect = Callable[..., Any]
"""The fixtures ``connected``, ``open_station`` and ``open_peer``."""


async def steps_of(vehicle: Vehicle, order: Order) -> list[Step]:
    async with aclosing(vehicle.run(order)) as steps:
        return [step async for step in steps]


def running(vehicle: Vehicle, order: Order) -> asyncio.Task[list[Step]]:
    return asyncio.create_task(steps_of(vehicle, order), name=f"test.{order.verb}")


def brief(steps: list[Step]) -> list[tuple[str, int, bool]]:
    return [(step.stage, step.ack.result, step.last) for step in steps]


def silent(peer: Peer, message: Any) -> None:
    """A vehicle that answers nothing."""
