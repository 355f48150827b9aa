"""Whether the items that a vehicle has are the ones that were sent to it.

Vehicles keep items in their own way: ArduPilot counts heights in centimetres, keeps only the parameters that a command
uses, and writes one frame for another. What would make it fly elsewhere is a difference, the rest a change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from petalbus.handlers.mavlink.missions.items import CIRCLES, GLOBAL_FRAMES, POLYGONS, MissionItem

_MOST_TOLD: Final = 20
_SAME_FRAME: Final = {5: 0, 6: 3, 11: 10}
_LAST_NAV: Final = 95
_WITH_PLACE: Final = frozenset((179, 189, 192, 195, 201))
_FENCES: Final = 5000


class Compared(NamedTuple):
    """``different`` is what matters, ``changed`` what the vehicle keeps otherwise; each as text, at most twenty."""

    different: tuple[str, ...]
    changed: tuple[str, ...]


def compare(
    wanted: Sequence[MissionItem], kept: Sequence[MissionItem], *, from_item: int = 0, strictly: bool = False
) -> Compared:
    """Compare lists from ``from_item`` on (ArduPilot's item 0 of a mission is its own).

    ``strictly``: nothing counts as kept in another way. So it must be where the vehicle did not accept the list: an
    older one may be there that differs in nothing but such things.
    """
    different: list[str] = []
    changed: list[str] = []
    if len(wanted) != len(kept):
        different.append(f"it has {len(kept)} items, not {len(wanted)}")
    for want, have in list(zip(wanted, kept, strict=False))[from_item:]:
        _compare_item(want, have, different, changed)
    if strictly:
        different, changed = [*different, *changed], []
    return Compared(tuple(different[:_MOST_TOLD]), tuple(changed[:_MOST_TOLD]))


def _compare_item(want: MissionItem, have: MissionItem, different: list[str], changed: list[str]) -> None:
    name = f"item {want.seq}"
    if have.command != want.command:
        different.append(f"{name}: command {have.command}, not {want.command}")
        return
    placed = want.command <= _LAST_NAV or want.command in _WITH_PLACE or want.command >= _FENCES
    place = different if placed and want.frame in GLOBAL_FRAMES else changed
    if _SAME_FRAME.get(have.frame, have.frame) != _SAME_FRAME.get(want.frame, want.frame):
        place.append(f"{name}: frame {have.frame}, not {want.frame}")
    for axis in ("x", "y"):
        ours, theirs = getattr(want, axis), getattr(have, axis)
        if abs(ours - theirs) > 2:
            place.append(f"{name}: {axis} {theirs}, not {ours}")
    if not math.isnan(want.z) and not abs(have.z - want.z) <= 0.02 + 1e-3 * abs(want.z):
        place.append(f"{name}: z {have.z:g}, not {want.z:g}")
    for at, (ours_f, theirs_f) in enumerate(zip(want.params, have.params, strict=True), 1):
        if math.isnan(ours_f) or abs(theirs_f - ours_f) <= 1e-3 * max(1.0, abs(ours_f)):
            continue
        matters = at == 1 and (want.command in POLYGONS or (want.command in CIRCLES and abs(theirs_f - ours_f) > 1))
        # what a vehicle does not keep comes back as zero, what it rounds as something near; all else is another mission
        matters = matters or (theirs_f != 0 and abs(theirs_f - ours_f) >= 1)
        (different if matters else changed).append(f"{name}: param{at} {theirs_f:g}, not {ours_f:g}")
