"""Missions, fences and rally points to exchange."""

from __future__ import annotations

import math
from collections.abc import Sequence

from petalbus.handlers.mavlink.missions.items import MissionItem, MissionKind
from petalbus.handlers.mavlink.sim.missions import Missions
from petalbus.handlers.mavlink.sim.node import SimVehicle

MISSION, FENCE, RALLY = MissionKind.MISSION, MissionKind.FENCE, MissionKind.RALLY
PROTOCOL = frozenset((39, 40, 43, 44, 45, 47, 51, 73))


def onboard(sim: SimVehicle) -> Missions:
    return next(service for service in sim.services if isinstance(service, Missions))


def mission(number: int, *, step: int = 100) -> list[MissionItem]:
    place = {"x": 473977430, "y": 85455943, "z": 15.0}
    items = [MissionItem(seq, 3, 16, param4=math.nan, **place) for seq in range(number)]  # type: ignore[arg-type]
    return [MissionItem(**{**item.fields(), "x": item.x + step * item.seq}) for item in items]


FENCE_ITEMS = [
    *(MissionItem(seq, 0, 5001, param1=3.0, x=470000000 + seq * seq, y=80000000 + seq) for seq in range(3)),
    MissionItem(3, 0, 5004, param1=25.0, x=471000000, y=81000000),
]
RALLY_ITEMS = [MissionItem(seq, 3, 5100, x=470000000 + seq, y=80000000, z=20.0) for seq in range(3)]
OF_KIND = {MISSION: mission(6), FENCE: FENCE_ITEMS, RALLY: RALLY_ITEMS}


def places(items: Sequence[MissionItem], first: int = 0) -> list[tuple[int, ...]]:
    return [(item.seq, item.command, item.x, item.y) for item in items[first:]]
