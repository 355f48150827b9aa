"""Where a message for somebody leaves: at which of the addresses where he was heard. Pure: no I/O, no clock.

A vehicle may be heard at several addresses: on a wire and on its spare, or at a new one after its reboot. It keeps
conversations, such as the transfer of a file, by the wire on which they began. So a way that was chosen stays,
until its address is gone or silent, or commands stay unanswered there: a copy of the vehicle's stream is heard,
but takes nothing. An emergency stop takes all ways.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from petalbus.handlers.mavlink.wire.framing import MARKER_V2, Frame

if TYPE_CHECKING:
    from petalbus.handlers.mavlink.wire.transport import Address

log = logging.getLogger(__name__)

MOST_SENDERS: Final = 1024
"""At one address, after ``look``."""

SILENT_S: Final = 1.5
"""An address at which somebody was heard so much earlier than at another one is not the way to him any more."""

LATELY_S: Final = 5.0
"""An emergency stop goes wherever its target was heard in the last so many seconds before it was heard last."""

_UNANSWERED_S: Final = 2.5
_UNANSWERED: Final = 3
_MOST_CHOSEN: Final = 1024
_MOST_NUMBERS: Final = 16
_AUTOPILOT: Final = 1
_COMMANDS: Final = frozenset((75, 76))  # COMMAND_INT, COMMAND_LONG
_COMMAND_ACK: Final = 77
_ARM_DISARM: Final = 400
_FORCE: Final = 21196.0
_TERMINATE: Final = 185
_FORCE_BYTES: Final = struct.pack("<f", _FORCE)
_TERMINATE_BYTE: Final = bytes((_TERMINATE,))
_PARAMS: Final = struct.Struct("<2f")
_NUMBER: Final = struct.Struct("<20xH")  # in both commands, behind the first two parameters
_ACK: Final = struct.Struct("<H6xBB")
_LONGEST: Final = 35
"""Bytes of the longer command's payload."""

Heard = dict[bytes, float]
"""Sender (system and component as two bytes) -> when it was heard last, in monotonic seconds."""


@dataclass(slots=True)
class _Place:
    """One address."""

    heard: Heard = field(default_factory=dict)
    proven: set[bytes] = field(default_factory=set)
    """Senders that answered a command which left to here."""


@dataclass(slots=True)
class _Asked:
    """Commands to one target that left to one address, and of which none is answered."""

    address: Address
    since: float
    count: int = 0
    numbers: set[int] = field(default_factory=set)


class Routes:
    """Who was heard where, and where what is for him leaves. Times are monotonic seconds, all from one clock."""

    def __init__(self, *, system: int, component: int) -> None:
        """``system``/``component`` is who we are."""
        self._own = system, component
        self._places: dict[Address, _Place] = {}  # in the order in which they came
        self._chosen: dict[bytes, Address] = {}
        self._asked: dict[bytes, _Asked] = {}

    def heard_at(self, address: Address) -> Heard:
        """Who is heard at an address: whoever receives from there writes it."""
        return self._places.setdefault(address, _Place()).heard

    def forget(self, address: Address) -> None:
        """The address is no way any more."""
        self._places.pop(address, None)

    def look(self, frames: Iterable[Frame]) -> None:
        """After some frames came: note which commands are answered, and keep the number of senders down.

        With signing every acknowledgement among the frames must be proven.
        """
        for place in self._places.values():
            if len(place.heard) > MOST_SENDERS:
                _thin(place.heard)
        if self._asked:
            self._note_answers(frames)

    def _note_answers(self, frames: Iterable[Frame]) -> None:
        """What is answered proves that its way leads there."""
        for frame in frames:
            if frame.msgid != _COMMAND_ACK:
                continue
            sender = bytes((frame.sysid, frame.compid))
            asked = self._asked.get(sender)
            if asked is None:
                continue
            number, *to = _ACK.unpack(frame.payload[: _ACK.size].ljust(_ACK.size, b"\0"))
            if number in asked.numbers and all(its in (0, own) for its, own in zip(to, self._own, strict=True)):
                del self._asked[sender]
                if asked.address in self._places:
                    self._places[asked.address].proven.add(sender)

    def to(self, system: int, component: int, data: bytes, now: float) -> list[Address]:
        """Where the frame ``data`` for a component of a system leaves; empty when that system was heard nowhere.

        What is for a component that was not heard goes the autopilot's way, and where that was not heard, either,
        that of any other component. What is for all components (0) goes each one's way, and to none of them twice.
        """
        msgid, payload = _opened(data)
        is_command = msgid in _COMMANDS
        if is_command and is_stop(payload):
            return self._lately(system)
        wanted = bytes((system, component or _AUTOPILOT))
        sender = self._known(wanted)
        if sender is None:
            return []
        way = self._way(sender, now)
        if not component:
            return self._all_ways(sender, way, now)
        if is_command and sender == wanted:
            self._ask(sender, way, _NUMBER.unpack_from(payload, _PARAMS.size)[0], now)
        return [way]

    def _known(self, wanted: bytes) -> bytes | None:
        """Who of the system was heard and shall stand for who is wanted."""
        for sender in (wanted, bytes((wanted[0], _AUTOPILOT))):
            if any(sender in place.heard for place in self._places.values()):
                return sender
        found = [
            (when, sender)
            for place in self._places.values()
            for sender, when in place.heard.items()
            if sender[0] == wanted[0]
        ]
        return max(found)[1] if found else None

    def _way(self, sender: bytes, now: float) -> Address:
        """The one way to somebody who was heard."""
        heard = {where: place.heard[sender] for where, place in self._places.items() if sender in place.heard}
        newest = max(heard.values())
        alive = [where for where, when in heard.items() if newest - when <= SILENT_S]
        proven = [where for where in alive if sender in self._places[where].proven]
        chosen = self._chosen.get(sender)
        if chosen is None or chosen not in alive:
            return self._choose(sender, (proven or alive)[0])
        if len(alive) > 1 and self._is_unanswered(sender, chosen, now):
            self._places[chosen].proven.discard(sender)
            log.info("no command to MAVLink %d/%d at %s is answered", *sender, chosen)
            turn = alive.index(chosen)
            others = alive[turn + 1 :] + alive[:turn]
            return self._choose(sender, next((where for where in others if where in proven), others[0]))
        if proven and chosen not in proven:
            return self._choose(sender, proven[0])  # it was the way before, and is heard again
        return chosen

    def _choose(self, sender: bytes, where: Address) -> Address:
        before = self._chosen.get(sender)
        if before is None and len(self._chosen) >= _MOST_CHOSEN:
            self._chosen.clear()  # nobody speaks with so many; each way is chosen anew by the same rules
            self._asked.clear()
        self._chosen[sender] = where
        self._asked.pop(sender, None)
        if before is not None:
            log.info("the way to MAVLink %d/%d is now %s; before it was %s", *sender, where, before)
        return where

    def _all_ways(self, first: bytes, way: Address, now: float) -> list[Address]:
        ways = [way]
        others = {sender for place in self._places.values() for sender in place.heard if sender[0] == first[0]}
        for sender in sorted(others - {first}):
            other = self._way(sender, now)
            if other not in ways and first not in self._places[other].heard:
                ways.append(other)
        return ways

    def _lately(self, system: int) -> list[Address]:
        """Where the system, and where its autopilot, were heard shortly before they were heard last; and, however long
        ago, where the autopilot answered commands, or where its way is: what was heard since may be a mere copy.
        """
        sender = bytes((system, _AUTOPILOT))
        whole: dict[Address, float] = {}
        autopilot: dict[Address, float] = {}
        for where, place in self._places.items():
            times = [when for sender, when in place.heard.items() if sender[0] == system]
            if times:
                whole[where] = max(times)
            if (when := place.heard.get(sender)) is not None:
                autopilot[where] = when
        ways: dict[Address, None] = {}
        for heard in (autopilot, whole):
            newest = max(heard.values(), default=0.0)
            ways |= dict.fromkeys(where for where, when in heard.items() if newest - when <= LATELY_S)
        ways |= dict.fromkeys(where for where, place in self._places.items() if sender in place.proven)
        if (chosen := self._chosen.get(sender)) in self._places:
            ways[chosen] = None
        return [*ways]

    def _ask(self, sender: bytes, way: Address, number: int, now: float) -> None:
        asked = self._asked.get(sender)
        if asked is None or asked.address != way:
            asked = self._asked[sender] = _Asked(way, now)
        asked.count += 1
        if len(asked.numbers) < _MOST_NUMBERS:
            asked.numbers.add(number)

    def _is_unanswered(self, sender: bytes, way: Address, now: float) -> bool:
        """Whether to doubt that the way leads there: soon, but not for one loss where it did lead there."""
        asked = self._asked.get(sender)
        if asked is None or asked.address != way or now - asked.since < _UNANSWERED_S:
            return False
        return asked.count >= (_UNANSWERED if sender in self._places[way].proven else 1)


def _thin(heard: Heard) -> None:
    """Forget the half that was heard earlier: a wire may invent more senders than anybody has at one address."""
    for sender in sorted(heard, key=heard.__getitem__)[: len(heard) // 2]:
        del heard[sender]


def component_meant(data: bytes, system: int, places: Sequence[int | None]) -> int:
    """For which component of the system the whole frame is: the autopilot where it names none, 0 for all of them.

    ``places`` is where in the payload the target system and component stand, see ``Dialect.target_places``.
    """
    named_system, component = (
        0 if place is None or place >= data[1] else data[(10 if data[0] == MARKER_V2 else 6) + place]
        for place in places
    )
    return component if component or (named_system == system and places[1] is not None) else _AUTOPILOT


def _opened(data: bytes) -> tuple[int, bytes]:
    """Message id and payload, filled up so that a command's parameters can be read."""
    if data[0] == MARKER_V2:
        return int.from_bytes(data[7:10], "little"), data[10 : 10 + data[1]].ljust(_LONGEST, b"\0")
    return data[5], data[6 : 6 + data[1]].ljust(_LONGEST, b"\0")


def is_stop(payload: bytes) -> bool:
    """Whether this command, by its payload, stops the motors, wherever the vehicle is: twice is no other than once.

    A plain disarming is none: it may be followed by an arming, which a late second one would undo.
    """
    payload = payload.ljust(_LONGEST, b"\0")
    first, second = _PARAMS.unpack_from(payload)
    number = _NUMBER.unpack_from(payload, _PARAMS.size)[0]
    forced = number == _ARM_DISARM and first == 0.0 and second == _FORCE
    return bool(forced or (number == _TERMINATE and first > 0.5))


def may_hold_stop(data: bytes) -> bool:
    """Whether a stop may be among whole frames; costs much less than to look at each."""
    return _FORCE_BYTES in data or _TERMINATE_BYTE in data
