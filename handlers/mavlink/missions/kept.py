"""In which ways the two autopilots keep an item otherwise than it was sent, and it is the same item all the same.

ArduPilot stores a command in a few bytes: numbers lose their fraction, some keep only their sign, what a command does
not use is gone, and a frame is stored for commands with a place alone. PX4 keeps items without a place as they come;
of those with one it keeps what it uses, with angles from 0 to 360 degrees.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from petalbus.handlers.mavlink.flight.state import Autopilot
from petalbus.handlers.mavlink.missions.items import (
    CIRCLES,
    FENCE_RETURN,
    FRAME_MISSION,
    POLYGONS,
    RALLY_POINT,
    WAYPOINT,
    MissionItem,
    has_place,
)

_FENCE: Final = POLYGONS | CIRCLES | {FENCE_RETURN}

# A letter for each parameter: "." it is dropped; "i" its fraction is; "o" one or the other, by the version;
# "b" as "i", and at most 255; "c" it is kept in hundredths; "s" only its sign is kept, as 1 or -1; "x" only whether it
# is above zero, as 1 or 0; "r" a radius: above 255 m in tens; "f" it is kept; "a" it is, as an angle
_FENCE_AND_RALLY: Final = "5000 ....  5001 i...  5002 i...  5003 f...  5004 f...  5100 ...."


def _table(text: str) -> dict[int, str]:
    words = text.split()
    return {int(number): letters for number, letters in zip(words[::2], words[1::2], strict=True)}


_ARDUPILOT: Final = _table(
    """
    16 ooo.  17 ..i.  18 i.rx  19 i.sx  20 ....  21 i..s  22 i...  30 i...  31 .i.x
    82 i...  83 ffi.  84 ....  85 o.o.  92 i...  93 iiii  94 c...
    112 i...  113 f...  114 f...  115 ffii
    176 i...  177 ii..  178 ifi.  179 i...  181 ii..  182 iif.  183 ii..  184 iiif
    188 ....  189 ....  191 ....  194 i...  195 ....  201 i...  202 iiii  203 iiii  205 fff.  206 f...
    207 i...  208 i...  210 i...  211 ii..  212 i...  213 ffi.  215 i...  222 ifff  223 xxc.
    3000 i...  42600 iiff
    """
    + _FENCE_AND_RALLY
)
_PX4: Final = _table(
    """
    16 ff.a  17 ..fa  19 fxfx  21 .i.a  22 ...a  31 xf.x  84 ...a  85 ...a
    80 ....  195 ....  201 ....  4501 ....
    """
    + _FENCE_AND_RALLY
)
_PLANES_WAYPOINT: Final = ".bb."
_OTHERS_WAYPOINT: Final = "i..."
_AS_IT_CAME: Final = "ffff"
_LASTING: Final = frozenset("ibcrfa")
_PLANES: Final = frozenset((1, *range(19, 26)))  # MAV_TYPE: with fixed wings, and those that take off without a runway
_ARDUPILOT_PLACED: Final = frozenset((16, 17, 18, 19, 21, 22, 30, 31, 36, 82, 84, 85, 92, 94, 179, 188, 189, 191)) | {
    195,
    201,
}
_NOT_A_PLACE: Final = frozenset((202, 203))  # ArduPilot keeps other things in x, y and z of these
_LARGEST_BYTE: Final = 255


class Kept(NamedTuple):
    """As what an item may come back, beside what it says itself."""

    frames: tuple[int, ...] = ()
    xy: tuple[int, ...] = ()
    z: tuple[float, ...] = ()
    params: tuple[tuple[float, ...], ...] = ((), (), (), ())
    angle: bool = False
    """``param4`` is an angle in degrees."""
    lasting: tuple[bool, bool, bool, bool] = (False, False, False, False)
    """Which parameters are kept, but for their fraction: zero is another mission, then."""
    placed: bool = False
    """In MAV_FRAME_MISSION x, y and z say where, too."""
    autocontinue: bool = False
    """``autocontinue`` is kept, and the vehicle stops at an item without it."""


def kept(item: MissionItem, autopilot: int | None, vehicle: int | None = None) -> Kept:
    """How this autopilot (MAV_AUTOPILOT) may keep an item, in a ``vehicle`` of this MAV_TYPE.

    Of other autopilots nothing is known.
    """
    if autopilot == Autopilot.ARDUPILOT:
        return _kept_by_ardupilot(item, vehicle)
    if autopilot == Autopilot.PX4:
        return _kept_by_px4(item)
    return Kept()


def _kept_by_ardupilot(item: MissionItem, vehicle: int | None) -> Kept:
    letters = _ARDUPILOT.get(item.command)
    if item.command == WAYPOINT and vehicle is not None:
        letters = _PLANES_WAYPOINT if vehicle in _PLANES else _OTHERS_WAYPOINT
    ways = _with_params(item, letters) if letters else Kept()
    if item.command in _FENCE:
        return ways._replace(frames=(0,), z=(0.0,))
    if item.command == RALLY_POINT:
        return ways._replace(frames=(3,), z=() if math.isnan(item.z) else (float(math.trunc(item.z)),))
    if item.command in _ARDUPILOT_PLACED:
        return ways._replace(frames=(0,) if item.frame == FRAME_MISSION else (), placed=True)
    if letters and item.command not in _NOT_A_PLACE:
        return ways._replace(frames=(0,), xy=(0,), z=(0.0,))
    return ways if has_place(item.command) else ways._replace(frames=(0,))


def _kept_by_px4(item: MissionItem) -> Kept:
    letters = _AS_IT_CAME if item.frame == FRAME_MISSION else _PX4.get(item.command)
    if letters is None:
        return Kept(autocontinue=True)
    ways = _with_params(item, letters)
    own = item.command in _FENCE or item.command == RALLY_POINT
    frames = (5,) if item.command in _FENCE else ()
    return ways._replace(frames=frames, angle=letters[3] == "a", autocontinue=not own)


def _with_params(item: MissionItem, letters: str) -> Kept:
    ways = tuple(_way(letter, value) for letter, value in zip(letters, item.params, strict=True))
    first, second, third, fourth = (letter in _LASTING for letter in letters)
    return Kept(params=ways, lasting=(first, second, third, fourth))


def _way(letter: str, value: float) -> tuple[float, ...]:
    """As which numbers one may come back. Zero stands for what is dropped."""
    if letter in "fa" or math.isnan(value):
        return ()
    whole = float(math.trunc(value))
    if letter == "c":
        return (math.trunc(value * 100.0) / 100.0, round(value * 100.0) / 100.0)
    if letter == "r":
        tens = math.copysign(10.0 * (abs(whole) // 10), whole)
        return (tens,) if abs(whole) > _LARGEST_BYTE else (whole,)
    return {
        ".": (0.0,),
        "i": (whole,),
        "o": (whole,),
        "b": (min(whole, float(_LARGEST_BYTE)),),
        "s": (-1.0 if value < 0 else 1.0,),
        "x": (1.0 if value > 0 else 0.0,),
    }[letter]
