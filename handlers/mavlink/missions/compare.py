"""Whether the items that a vehicle has are the ones that were sent to it.

Vehicles keep items in their own way: ArduPilot counts heights in centimetres, keeps only the parameters that a command
uses, and writes one frame for another. What would make it fly elsewhere is a difference, the rest a change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from petalbus.handlers.mavlink.missions.items import (
    CIRCLES,
    FRAME_MISSION,
    GLOBAL_FRAMES,
    POLYGONS,
    MissionItem,
    has_place,
)
from petalbus.handlers.mavlink.missions.kept import Kept, kept

_MOST_TOLD: Final = 20
_SAME_FRAME: Final = {5: 0, 6: 3, 11: 10}
_NEAR: Final = 1e-3
_NEAR_AT_MOST: Final = 0.4  # numbers of items are whole ones
_NEAR_M: Final = 0.02


class Compared(NamedTuple):
    """``different`` is what matters, ``changed`` what the vehicle keeps otherwise; each as text, at most twenty."""

    different: tuple[str, ...]
    changed: tuple[str, ...]


class _Found:
    """What is different, what is changed, and what this autopilot is known to change."""

    def __init__(self) -> None:
        self.different: list[str] = []
        self.changed: list[str] = []
        self.known: list[str] = []


def compare(
    wanted: Sequence[MissionItem],
    have: Sequence[MissionItem],
    *,
    from_item: int = 0,
    strictly: bool = False,
    autopilot: int | None = None,
    vehicle: int | None = None,
) -> Compared:
    """Compare lists from ``from_item`` on (ArduPilot's item 0 of a mission is its own).

    ``strictly``: nothing counts as kept in another way, but for what ``autopilot`` (MAV_AUTOPILOT) is known to keep so
    in a ``vehicle`` of this MAV_TYPE. So it must be where the vehicle did not accept the list: an older one may be
    there that differs in nothing but such things.
    """
    found = _Found()
    if len(wanted) != len(have):
        found.different.append(f"it has {len(have)} items, not {len(wanted)}")
    for want, has in list(zip(wanted, have, strict=False))[from_item:]:
        _compare_item(want, has, kept(want, autopilot, vehicle), found)
    if strictly:
        different, changed = [*found.different, *found.changed], found.known
    else:
        different, changed = found.different, [*found.changed, *found.known]
    return Compared(tuple(different[:_MOST_TOLD]), tuple(changed[:_MOST_TOLD]))


def _compare_item(want: MissionItem, have: MissionItem, ways: Kept, found: _Found) -> None:
    name = f"item {want.seq}"
    if have.command != want.command:
        found.different.append(f"{name}: command {have.command}, not {want.command}")
        return
    _compare_place(name, want, have, ways, found)
    if ways.autocontinue and have.autocontinue != want.autocontinue:
        found.different.append(f"{name}: autocontinue {have.autocontinue}, not {want.autocontinue}")
    for at, (ours, theirs, others) in enumerate(zip(want.params, have.params, ways.params, strict=True), 1):
        if math.isnan(ours) or _near(ours, theirs):
            continue
        if at == len(want.params) and ways.angle and _near(0.0, math.remainder(theirs - ours, 360.0)):
            continue
        text = f"{name}: param{at} {theirs:g}, not {ours:g}"
        if any(_near(other, theirs) for other in others):
            found.known.append(text)
        elif _is_another(want, ours, theirs, lasting=ways.lasting[at - 1], first=at == 1):
            found.different.append(text)
        else:
            found.changed.append(text)


def _is_another(want: MissionItem, ours: float, theirs: float, *, lasting: bool, first: bool) -> bool:
    """Whether a parameter that came back as ``theirs`` makes it another mission.

    What a vehicle does not keep comes back as zero, what it rounds as something near.
    """
    if first and want.command in CIRCLES:
        return theirs != math.trunc(ours)  # older ArduPilots count a radius in whole metres
    if first and want.command in POLYGONS:
        return True
    return math.isnan(theirs) or (theirs == 0 and lasting) or (theirs != 0 and abs(theirs - ours) >= 1)


def _compare_place(name: str, want: MissionItem, have: MissionItem, ways: Kept, found: _Found) -> None:
    """The frame, and x, y, z."""
    says_where = (has_place(want.command) and want.frame in GLOBAL_FRAMES) or (
        ways.placed and want.frame == FRAME_MISSION
    )
    place = found.different if says_where else found.changed
    frame = _SAME_FRAME.get(have.frame, have.frame)
    if frame != _SAME_FRAME.get(want.frame, want.frame):
        expected = frame in {_SAME_FRAME.get(each, each) for each in ways.frames}
        (found.known if expected else place).append(f"{name}: frame {have.frame}, not {want.frame}")
    for axis in ("x", "y"):
        ours, theirs = getattr(want, axis), getattr(have, axis)
        if abs(ours - theirs) > 2:
            (found.known if theirs in ways.xy else place).append(f"{name}: {axis} {theirs}, not {ours}")
    off = 0.0 if math.isnan(want.z) else abs(have.z - want.z)
    if not off <= _NEAR_M:
        near = off <= _NEAR_M + _NEAR * abs(want.z)
        listed = found.known if have.z in ways.z else found.changed if near else place
        listed.append(f"{name}: z {have.z:g}, not {want.z:g}")


def _near(ours: float, theirs: float) -> bool:
    return abs(theirs - ours) <= min(_NEAR * max(1.0, abs(ours)), _NEAR_AT_MOST)
