"""What an order is made of: commands by their number, and the steps that are told on the way."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from enum import IntEnum
from typing import NamedTuple

from petalbus.handlers.mavlink.flight.commands import Ack


class Cmd(IntEnum):
    """MAV_CMD, as far as it is used here."""

    NAV_LOITER_UNLIM = 17
    NAV_RETURN_TO_LAUNCH = 20
    NAV_LAND = 21
    NAV_TAKEOFF = 22
    NAV_VTOL_LAND = 85
    DO_SET_MODE = 176
    DO_CHANGE_SPEED = 178
    DO_FLIGHTTERMINATION = 185
    DO_REPOSITION = 192
    DO_PAUSE_CONTINUE = 193
    DO_MOTOR_TEST = 209
    ACTUATOR_TEST = 310
    COMPONENT_ARM_DISARM = 400
    REQUEST_MESSAGE = 512


FORCE = 21196.0
"""COMPONENT_ARM_DISARM's second parameter: disarm in the air, too."""


class Step(NamedTuple):
    """One acknowledgement on the way. ``last`` when it decides the order's outcome."""

    stage: str
    ack: Ack
    last: bool


Steps = AsyncGenerator[Step, None]
Check = Callable[[], None] | None
