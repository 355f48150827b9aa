"""How the simulated vehicle exchanges missions, fences and rally points, in each autopilot's way.

PX4 asks with MISSION_REQUEST_INT, again after 250 ms, and gives up in silence after 5 s. It keeps one exchange at a
time, ignores items that it did not ask for, and serves items in their order only.

ArduPilot asks with the old MISSION_REQUEST, again after 1 s, gives up after 8 s with OPERATION_CANCELLED, answers items
that it did not ask for with INVALID_SEQUENCE, or ERROR when nothing is under way.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from petalbus.handlers.mavlink.missions.items import MissionInvalid, MissionItem
from petalbus.handlers.mavlink.sim.autopilot import PX4, Autopilot
from petalbus.handlers.mavlink.sim.mission_lists import MissionLists, MissionResult
from petalbus.handlers.mavlink.sim.service import Onboard
from petalbus.handlers.mavlink.wire.framing import Frame

_ITEM, _REQUEST, _SET_CURRENT, _REQUEST_LIST, _COUNT, _CLEAR_ALL, _ACK, _REQUEST_INT, _ITEM_INT = (
    *(39, 40, 41),
    *(43, 44, 45),
    *(47, 51, 73),
)
_CURRENT: Final = 42
_ALL_KINDS: Final = 255
_NO_MISSION, _NOT_STARTED, _NOT_IN_MODE = 1, 2, 2
_NOT_KNOWN: Final = 65535
_FENCE: Final = 1
_PLAIN_FRAMES: Final = {5: 0, 6: 3}
_ACK_LAYOUT: Final = struct.Struct("<BBBBI")
_COUNT_LAYOUT: Final = struct.Struct("<HBBBI")
_CURRENT_LAYOUT: Final = struct.Struct("<HHBBIII")


@dataclass(slots=True)
class _Upload:
    """Items that come in. Times are seconds since boot."""

    partner: tuple[int, int]
    kind: int
    count: int
    heard: float
    asked: float = 0.0
    items: list[MissionItem] = field(default_factory=list)


@dataclass(slots=True)
class _Sending:
    """Items that PX4 sends; ``upcoming`` is the number that may be asked for."""

    partner: tuple[int, int]
    kind: int
    heard: float
    upcoming: int = 0


class Missions:
    """Exchanges the lists that it keeps. They survive a reboot, an exchange does not."""

    handles = frozenset(
        (_ITEM, _REQUEST, _SET_CURRENT, _REQUEST_LIST, _COUNT, _CLEAR_ALL, _ACK, _REQUEST_INT, _ITEM_INT)
    )

    def __init__(self, onboard: Onboard, autopilot: Autopilot) -> None:
        self._onboard = onboard
        self._px4 = autopilot is PX4
        self._again, self._give_up = (0.25, 5.0) if self._px4 else (1.0, 8.0)
        self.lists = MissionLists(autopilot)
        self.told: Callable[[], tuple[int, int]] = lambda: (_NOT_STARTED, _NOT_IN_MODE)
        """MISSION_CURRENT's mission_state and mission_mode, where there is a mission."""
        self.quiet = False
        """Whether MISSION_CURRENT waits until something happens."""
        self.feasible = True
        """Whether PX4's missions pass the check that comes after they were accepted."""
        self.check_s = 0.0
        """How long that check takes; until then PX4 tells of the mission before."""
        self.can_check = True
        """Whether PX4 has the home that the check needs; without it, what it found before stays."""
        self._valid = False  # what the last check found
        self._check_at: float | None = None
        self._seen: tuple[list[MissionItem], list[MissionItem]] | None = None  # mission and fence that it knows of
        self._held = False  # PX4 believes that some link still receives a list
        self._upload: _Upload | None = None
        self._sending: _Sending | None = None
        self._last: _Upload | None = None
        self._told = 0.0
        self._said: tuple[int, int, int, int] | None = None
        self._answers: dict[int, Callable[[tuple[int, int], dict[str, Any]], None]] = {
            _REQUEST_LIST: self._on_list,
            _COUNT: self._on_count,
            _CLEAR_ALL: self._on_clear,
            _SET_CURRENT: self._on_set_current,
            _ACK: self._on_ack,
        }

    @property
    def items(self) -> list[list[MissionItem]]:
        """Mission, fence, rally points, as they would be sent."""
        return self.lists.items

    @property
    def current(self) -> int:
        """The item to be flown; -1: from the first on (ArduPilot's home is none)."""
        return self.lists.current

    @current.setter
    def current(self, seq: int) -> None:
        self.lists.current = seq

    def receive(self, frame: Frame) -> None:
        """A message of the protocol."""
        fields = self._onboard.dialect.fields(frame)
        if not self._onboard.is_for_us(fields["target_system"], fields["target_component"]):
            return
        sender = frame.sysid, frame.compid
        if frame.msgid in (_REQUEST, _REQUEST_INT):
            self._on_request(sender, fields, whole=frame.msgid == _REQUEST_INT)
        elif frame.msgid in (_ITEM, _ITEM_INT):
            self._on_item(sender, fields, whole=frame.msgid == _ITEM_INT)
        elif fields.get("mission_type", 0) in (0, 1, 2) or frame.msgid == _CLEAR_ALL:
            self._answers[frame.msgid](sender, fields)
        else:
            self._acknowledge(sender, fields["mission_type"], MissionResult.UNSUPPORTED)

    def tick(self) -> None:
        """Ask again, give up, tell the current item."""
        now = self._onboard.since_boot()
        upload, sending = self._upload, self._sending
        self._check()
        if upload is not None and now - upload.heard > self._give_up:
            self._upload, self._held = None, False
            self._say("Operation timeout" if self._px4 else "Mission upload timeout")
            if not self._px4:
                self._acknowledge(upload.partner, upload.kind, MissionResult.OPERATION_CANCELLED)
        elif upload is not None and now - upload.asked > self._again:
            self._ask(upload)
        if sending is not None and now - sending.heard > self._give_up:
            self._sending, self._held = None, False
            self._say("Operation timeout")
        news = self._px4 and self._said != self._position()
        if news or ((self.items[0] or self._px4) and not self.quiet and now - self._told >= 1.0):
            self.tell_current()

    def reset(self) -> None:
        """The vehicle boots: what was under way is forgotten."""
        self._upload = self._sending = self._last = self._seen = self._check_at = self._said = None
        self._held = self._valid = False
        self.current = -1
        self._told = 0.0

    # -- towards the ground -------------------------------------------------------------------------------------------

    def _on_list(self, sender: tuple[int, int], fields: dict[str, Any]) -> None:
        kind, upload = fields["mission_type"], self._upload
        if self._px4 and upload is not None and len(upload.items) == len(self.items[upload.kind]):
            self._upload, self._held = None, True  # PX4 takes the question for one after a download that ended
        if self._upload is not None:
            if self._px4:
                self._say("Mission download request ignored, already active")
            else:
                self._acknowledge(sender, kind, MissionResult.DENIED)
            return
        if self._px4:
            sending = self._sending
            other = sending is not None and (sending.partner, sending.kind) != (sender, kind)
            if sending is not None and other and sending.upcoming < len(self.items[sending.kind]):
                self._say("Mission download request ignored, already active")
                return
            self._sending = _Sending(sender, kind, self._onboard.since_boot())
        payload = _COUNT_LAYOUT.pack(len(self.items[kind]), *sender, kind, self.lists.ids[kind])
        self._onboard.send_payload(_COUNT, payload)

    def _on_request(self, sender: tuple[int, int], fields: dict[str, Any], *, whole: bool) -> None:
        kind, seq = fields["mission_type"], fields["seq"]
        if self._px4 and not self._may_ask(sender, kind, seq):
            return
        if not self._px4 and (self._upload is not None or kind > 2):
            refusal = MissionResult.DENIED if kind <= 2 else MissionResult.UNSUPPORTED
            self._acknowledge(sender, kind, refusal)
        elif seq >= len(self.items[kind]):
            self._acknowledge(sender, kind, MissionResult.INVALID_SEQUENCE)
        else:
            item = self.items[kind][seq]
            if self._px4 and kind == 0:
                item = replace(item, current=self.lists.settled and seq == self.current)
            if self._px4 and not whole:
                item = replace(item, frame=_PLAIN_FRAMES.get(item.frame, item.frame))
            name, values = ("_INT", item.fields()) if whole else ("", item.float_fields())
            to = {"target_system": sender[0], "target_component": sender[1], "mission_type": kind}
            self._onboard.send(self._onboard.dialect.message(f"MISSION_ITEM{name}", **to, **values))

    def _may_ask(self, sender: tuple[int, int], kind: int, seq: int) -> bool:
        """PX4 serves the upcoming item, or the one before it again; any other number ends the exchange."""
        sending = self._sending
        if sending is None or sending.partner != sender or sending.kind != kind:
            return False
        sending.heard = self._onboard.since_boot()
        if seq == sending.upcoming and seq < len(self.items[kind]):
            sending.upcoming += 1
        elif seq != sending.upcoming - 1:
            self._sending = None
            self._acknowledge(sender, kind, MissionResult.ERROR)
            return False
        return True

    def _on_ack(self, sender: tuple[int, int], fields: dict[str, Any]) -> None:
        if not self._px4:
            return
        sending, upload = self._sending, self._upload
        if sending is not None and sending.partner == sender and sending.kind == fields["mission_type"]:
            self._sending = None
        cancelled = fields["type"] == MissionResult.OPERATION_CANCELLED
        if upload is not None and upload.partner == sender and cancelled:
            self._upload, self._held = None, False

    # -- from the ground ----------------------------------------------------------------------------------------------

    def _on_count(self, sender: tuple[int, int], fields: dict[str, Any]) -> None:
        kind, now, upload = fields["mission_type"], self._onboard.since_boot(), self._upload
        if self._px4:
            if (
                self._held
                or self._sending is not None
                or (upload is not None and (upload.partner != sender or upload.items))
            ):
                if upload is not None and upload.partner == sender:
                    upload.heard = now
                self._acknowledge(sender, kind, MissionResult.ERROR)
                return
            if upload is not None:
                upload.heard = now
                self._ask(upload)
                return
        elif upload is not None and upload.partner != sender:
            self._acknowledge(sender, kind, MissionResult.DENIED)
            return
        if fields["count"] > self.lists.most[kind]:
            self._acknowledge(sender, kind, MissionResult.NO_SPACE)
            return
        self._onboard.note({"event": "mission upload", "kind": kind, "count": fields["count"]})
        begun = _Upload(sender, kind, fields["count"], now)
        if not self._px4 and kind != _FENCE:
            del self.items[kind][begun.count :]
        if begun.count == 0:
            self._finish(begun)
        else:
            self._upload = begun
            self._ask(begun)

    def _on_item(self, sender: tuple[int, int], fields: dict[str, Any], *, whole: bool) -> None:
        kind, seq, upload = fields["mission_type"], fields["seq"], self._upload
        if upload is None:
            self._late_item(sender, kind, seq)
            return
        if upload.partner != sender or upload.kind != kind:
            self._acknowledge(sender, kind, MissionResult.ERROR if self._px4 else MissionResult.DENIED)
            return
        if self._px4:
            upload.heard = self._onboard.since_boot()
        if seq != len(upload.items):
            if not self._px4:
                self._acknowledge(sender, kind, MissionResult.INVALID_SEQUENCE)
            return
        upload.heard = self._onboard.since_boot()
        try:
            item = MissionItem.from_fields(fields) if whole else MissionItem.from_float_fields(fields)
            result = self.lists.judge(item, kind)
        except MissionInvalid:
            result = MissionResult.INVALID_PARAM5_X
        if result is not MissionResult.ACCEPTED:
            self._upload, self._last, self._held = None, upload, False
            self._onboard.note({"event": "mission refused", "kind": kind, "seq": seq, "result": result.name})
            self._acknowledge(sender, kind, result)
            return
        upload.items.append(item)
        if not self._px4 and kind != _FENCE:
            self.lists.keep(kind, seq, item)
        if len(upload.items) == upload.count:
            self._finish(upload)
        else:
            self._ask(upload)

    def _late_item(self, sender: tuple[int, int], kind: int, seq: int) -> None:
        """PX4 accepts the last item that it took once more; ArduPilot never does."""
        last = self._last
        if not self._px4 or self._sending is not None:
            self._acknowledge(sender, kind, MissionResult.ERROR)
        elif last is not None and last.partner == sender and last.kind == kind:
            again = seq + 1 == len(last.items)
            result = MissionResult.ACCEPTED if again else MissionResult.ERROR
            self._acknowledge(sender, kind, result, self.lists.ids[kind] if again else 0)

    def _finish(self, upload: _Upload) -> None:
        kind, new, self._held = upload.kind, True, False
        if self._px4:
            new = self.lists.replace(kind, upload.items)
        elif kind == _FENCE:
            self.lists.replace_fence(upload.items)
        if kind == 0 and new:
            self.lists.begin(upload.items)
        self._upload, self._last = None, upload
        self._onboard.note({"event": "mission received", "kind": kind, "count": upload.count})
        self._acknowledge(upload.partner, kind, MissionResult.ACCEPTED, self.lists.ids[kind])
        if not self._px4:
            self._say("Flight plan received" if kind == 0 else "Fence received" if kind == 1 else "Rally received")

    def _on_clear(self, sender: tuple[int, int], fields: dict[str, Any]) -> None:
        kind = fields["mission_type"]
        busy = self._upload is not None or self._sending is not None
        if kind not in (0, 1, 2, _ALL_KINDS):
            self._acknowledge(sender, kind, MissionResult.UNSUPPORTED)
        elif busy and self._px4:
            self._say("WPM: IGN CLEAR CMD: Busy")
        elif busy:
            self._acknowledge(sender, kind, MissionResult.ERROR)
        else:
            for one in range(3) if kind == _ALL_KINDS else (kind,):
                self.lists.clear(one)
            self._onboard.note({"event": "mission cleared", "kind": kind})
            self._acknowledge(sender, kind, MissionResult.ACCEPTED)

    def _on_set_current(self, _sender: tuple[int, int], fields: dict[str, Any]) -> None:
        if not self.set_current(fields["seq"]) and self._px4:
            self._say("WPM: WP CURR CMD: Not in list" if self._upload is None else "WPM: IGN WP CURR CMD: Busy")

    def set_current(self, seq: int) -> bool:
        """Make an item the one to be flown; False when there is none, or the list is being replaced."""
        if not 0 <= seq < len(self.items[0]) or self._upload is not None:
            return False
        self.current, self.lists.settled = seq, True
        self._onboard.note({"event": "mission current", "seq": seq})
        if not self._px4:
            self.tell_current()
        return True

    # -- messages -----------------------------------------------------------------------------------------------------

    def _ask(self, upload: _Upload) -> None:
        upload.asked = self._onboard.since_boot()
        name = "MISSION_REQUEST_INT" if self._px4 else "MISSION_REQUEST"
        to = {"target_system": upload.partner[0], "target_component": upload.partner[1]}
        values = {"seq": len(upload.items), "mission_type": upload.kind}
        self._onboard.send(self._onboard.dialect.message(name, **to, **values))

    def _acknowledge(self, to: tuple[int, int], kind: int, result: MissionResult, list_id: int = 0) -> None:
        self._onboard.send_payload(_ACK, _ACK_LAYOUT.pack(*to, result, kind, list_id))

    def tell_current(self) -> None:
        """MISSION_CURRENT. ArduPilot does not count home, PX4 tells the largest number when it has no mission."""
        self._told = self._onboard.since_boot()
        self._said = self._position()
        payload = _CURRENT_LAYOUT.pack(*self._said, *self.lists.ids)
        self._onboard.send_payload(_CURRENT, payload)

    def _position(self) -> tuple[int, int, int, int]:
        """The current item, the total, the state and the mode."""
        count = len(self.items[0])
        state, mode = self._state()
        total = (count or _NOT_KNOWN) if self._px4 else max(0, count - 1)
        current = max(0, self.current) if self.lists.settled else _NOT_KNOWN
        return current, total, state, mode

    def _state(self) -> tuple[int, int]:
        """MISSION_CURRENT's state and mode. PX4 looks only after it accepted a mission whether it can be flown.

        It tells "not started" at its first item alone: at a later one it goes on to tell what it told before.
        """
        if not self.items[0] or (self._px4 and not self._valid):
            return _NO_MISSION, _NOT_IN_MODE
        state, mode = self.told()
        if self._px4 and state == _NOT_STARTED and self.current >= 1:
            state = self._said[2] if self._said is not None else 0
        return state, mode

    def _check(self) -> None:
        """PX4 looks at a new mission, and once more when there is a new fence; what it found before stays till then."""
        now = self._onboard.since_boot()
        seen = self._seen
        if not self._px4:
            return
        if seen is None or seen[0] is not self.items[0] or seen[1] is not self.items[1]:
            self._seen = self.items[0], self.items[1]
            self._check_at = now + self.check_s
        if self._check_at is None or now < self._check_at or not self.can_check:
            return
        self._check_at, self.lists.settled = None, True
        self._valid = bool(self.items[0]) and self.feasible
        if self.items[0] and not self._valid:
            self._say("Mission rejected: First waypoint too far away", severity=2)

    def _say(self, text: str, *, severity: int = 6) -> None:
        self._onboard.send(self._onboard.dialect.message("STATUSTEXT", severity=severity, text=text))
