"""Many parameters at once over a link that loses messages: what to send when, and what an answer means. Pure.

A window of requests is under way. Each has a timer of its own, which follows the measured round trip. Where a later
request was answered first, the earlier one counts as lost at once, as long as nothing was seen out of order.

A parameter is set as the type that the caller names. Where he names none and the vehicle would take an integer's bytes
for a float's, its type is asked for first: old PX4 versions store such bytes without a look at the type.
"""

from __future__ import annotations

import math
import struct
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple

from petalbus.handlers.mavlink.params.refusal import ENCODING_UNKNOWN, Refusal, refused
from petalbus.handlers.mavlink.params.round_trip import RoundTrip
from petalbus.handlers.mavlink.params.values import (
    PARAM_REQUEST_READ_ID,
    PARAM_SET_ID,
    ParamEncoding,
    ParamError,
    ParamType,
    ParamValue,
    encode_value,
    pack_param_read,
    pack_param_set,
)

_FLOAT: Final = struct.Struct("<f")
_BLIND_AFTER: Final = 2
_EAGER: Final = 4, 20
_EARLIEST: Final = 0.2
"""Share of the usual patience."""
_SPARE: Final = 0.09
"""Share of the messages that may be early repetitions."""
_SOME_LOSS: Final = 0.03
_DENIED: Final = 3
"""Sendings that are answered with one and the same other value until that counts as the vehicle's answer."""
_DENIED_S: Final = 0.1
"""Between two of these: answers to what was asked before, late or twice, are over by then."""
_UNLIKELY: Final = math.log(0.01)


class Phase(Enum):
    """What a parameter waits for."""

    READ = "read"
    LEARN = "learn"
    """Its value, because its type must be known before it is set."""
    SET = "set"


class Outgoing(NamedTuple):
    """A message that shall leave now."""

    msgid: int
    payload: bytes


@dataclass(slots=True)
class Item:
    """One parameter: a name (or a position, for reading), and what it shall be set to."""

    key: str | int
    value: float | None = None
    kind: int | None = None
    """MAV_PARAM_TYPE as which it is set; None: the one it has."""
    phase: Phase = Phase.READ
    raw: bytes = b""
    sends: int = 0
    """In this phase, as are the following."""
    begun_at: float = 0.0
    sent_at: float = 0.0
    order: int = 0
    hurry: bool = False
    hurried_at: float | None = None
    learned: bool = False
    answered: ParamValue | None = None
    denied: int = 0
    """Sendings one after the other that were answered with the same wrong value."""
    error: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How hard to try. Times are seconds."""

    window: int = 10
    resend: float = 0.7
    """Between two sendings of one request at most; less once the round trip is known."""
    retries: int = 3
    """For how many ``resend`` intervals to go on after the first one."""
    spacing: float = 0.0
    """Between any two sendings."""
    verify: bool = True
    """The value that comes back must be the one that was set."""


@dataclass(slots=True, kw_only=True)
class Remote:
    """The vehicle that is talked to, and what is known of it."""

    system: int
    component: int = 1
    encoding: ParamEncoding | None = None
    """None: not known; then integers are refused."""
    trip: RoundTrip = field(default_factory=RoundTrip)
    types: dict[str, int] = field(default_factory=dict)
    """MAV_PARAM_TYPE of each parameter that it told."""


class Transfer:
    """The state of one bulk operation. ``values`` and ``refusals`` fill up until all parameters are in one of them."""

    def __init__(self, items: Iterable[Item], *, remote: Remote, limits: Limits) -> None:
        self.values: dict[str | int, ParamValue] = {}
        self.refusals: dict[str | int, Refusal] = {}
        self.sent = 0
        self._remote = remote
        self._limits = limits
        self._items = {item.key: item for item in items}
        self._queue = deque(self._items.values())
        self._flying: dict[str | int, Item] = {}
        self._order = 0
        self._free_at = float("-inf")
        self._reordered = False
        self._reads_answered = False
        self._answered_sends = 0
        self._eager = _EAGER[1]
        self._early = 0
        self._loss = 0.0
        for item in self._items.values():
            if item.value is not None:
                self._prepare(item)

    @property
    def encoding(self) -> ParamEncoding | None:
        """How the vehicle sends integers; None: not known."""
        return self._remote.encoding

    @property
    def total(self) -> int:
        """Parameters asked for."""
        return len(self._items)

    @property
    def done(self) -> int:
        """Parameters whose outcome is known."""
        return len(self.values) + len(self.refusals)

    @property
    def finished(self) -> bool:
        """True when nothing is left to do."""
        return self.done == self.total

    def poll(self, now: float) -> list[Outgoing]:
        """What has to leave at ``now`` (monotonic seconds)."""
        out: list[Outgoing] = []
        for item in list(self._flying.values()):
            if now >= self._end(item):
                self._exhausted(item)
            elif now >= self._due(item) and now >= self._free_at:
                self._send(item, now, out)
        while self._queue and len(self._flying) < self._limits.window and now >= self._free_at:
            item = self._queue.popleft()
            if item.key not in self.refusals:
                self._flying[item.key] = item
                self._send(item, now, out)
        return out

    def next_due(self, now: float) -> float:
        """When ``poll`` has something to do again, if no answer comes before."""
        due = min(map(self._due, self._flying.values()), default=float("inf"))
        if self._queue and len(self._flying) < self._limits.window:
            due = now
        end = min(map(self._end, self._flying.values()), default=float("inf"))
        return min(max(due, self._free_at), end)

    def on_value(self, value: ParamValue, now: float) -> None:
        """A PARAM_VALUE of the vehicle."""
        self._remote.types[value.name] = value.param_type
        for key in (value.name, value.position):
            item = self._flying.get(key)
            if item is not None:
                self._answered(item, value, now)

    def on_error(self, name: str, error: int, now: float) -> None:
        """A PARAM_ERROR of the vehicle for a request of ours."""
        item = self._flying.get(name)
        if item is None:
            return
        item.error = error
        self._clock_answer(item, now)
        if error != ParamError.TYPE_MISMATCH:
            self._refuse(item, refused(item.key, error))
        elif item.phase is Phase.SET and not item.learned:
            self._learn(item)
        # else it is a repetition, or late: what was sent since may be right

    def give_up(self) -> None:
        """The time is up: what is still open was not answered."""
        for item in self._items.values():
            if item.key not in self.values and item.key not in self.refusals:
                self._exhausted(item)

    # -- one parameter ------------------------------------------------------------------------------------------------

    def _prepare(self, item: Item) -> None:
        """Decide how a parameter is set; a value that cannot travel is refused here."""
        assert isinstance(item.key, str)
        known = self._remote.types.get(item.key)
        if item.kind is None and known is not None:
            item.kind = known
        if item.kind is None and self._remote.encoding is ParamEncoding.BYTEWISE:
            item.phase = Phase.LEARN
        else:
            self._encode(item)

    def _encode(self, item: Item) -> None:
        """Settle the four bytes to send, and go on to sending them."""
        assert item.value is not None
        if item.kind is None:
            item.kind = ParamType.INT32 if isinstance(item.value, int) else ParamType.REAL32
        encoding = self._remote.encoding
        if encoding is None and item.kind != ParamType.REAL32:
            self._refuse(item, ENCODING_UNKNOWN)
            return
        try:
            item.raw = encode_value(item.value, item.kind, encoding or ParamEncoding.BYTEWISE)
        except ValueError as error:
            code = "TYPE_MISMATCH" if item.learned else "VALUE_INVALID"
            self._refuse(item, Refusal(code, str(error), item.error))
            return
        item.phase = Phase.SET
        item.sends = 0
        item.hurry = True

    def _learn(self, item: Item) -> None:
        """The vehicle says that the type is another one: ask which."""
        item.learned = True
        item.phase = Phase.LEARN
        item.sends = 0
        item.hurry = True

    def _answered(self, item: Item, value: ParamValue, now: float) -> None:
        if item.phase is not Phase.SET:
            self._reads_answered = True
            self._clock_answer(item, now)
            if item.phase is Phase.READ:
                self._confirm(item, value)
            else:
                item.kind = value.param_type
                item.learned = True
                self._encode(item)
        elif item.sends == 0:
            return  # of an earlier read
        elif not self._limits.verify or self._same(item, value):
            self._clock_answer(item, now)
            self._confirm(item, value)
        else:
            before, item.answered = item.answered, value
            if self._remote.encoding is ParamEncoding.BYTEWISE and value.param_type != item.kind:
                # it took the bytes for another type's: put that right at once
                item.kind = value.param_type
                item.learned = True
                sends = item.sends
                self._encode(item)
                item.sends = sends  # the time for this phase goes on
            else:
                self._denied(item, before, now)

    def _denied(self, item: Item, before: ParamValue | None, now: float) -> None:
        """Another value came back than the one that was set. Once may be chance: it is set again, twice."""
        if now - item.sent_at < (self._remote.trip.smooth or 0.0) / 2:
            return  # too early for an answer to the last sending
        same = before is not None and item.answered is not None and before.raw == item.answered.raw
        item.denied = item.denied + 1 if same else 1
        if item.denied >= _DENIED and now - item.begun_at >= (_DENIED - 1) * _DENIED_S:
            self._exhausted(item)

    def _same(self, item: Item, value: ParamValue) -> bool:
        if value.raw == item.raw:
            return self._remote.encoding is ParamEncoding.C_CAST or value.param_type == item.kind
        as_floats = self._remote.encoding is ParamEncoding.C_CAST or value.param_type == item.kind == ParamType.REAL32
        return as_floats and bool(_FLOAT.unpack(value.raw) == _FLOAT.unpack(item.raw))  # 0.0 and -0.0

    def _clock_answer(self, item: Item, now: float) -> None:
        """Learn from an answer how long one takes, and which earlier requests must be lost."""
        if item.sends == 1:
            self._remote.trip.sample(now - item.sent_at)
        smooth = self._remote.trip.smooth
        if item.hurried_at is not None and smooth is not None and now - item.hurried_at < smooth / 2:
            self._reordered = True  # too early for an answer to the repetition: the request was only late
        if self._reordered or item.sends != 1:
            return
        for other in self._flying.values():
            if other.sends and other.order < item.order and not other.hurry:
                other.hurry = True
                other.hurried_at = now

    def _due(self, item: Item) -> float:
        """When to send again. Who never answers is asked ever more rarely: its name may not exist."""
        if item.hurry:
            return float("-inf")
        patience = self._remote.trip.patience(self._limits.resend)
        if self._may_be_early(item):
            patience *= max(_EARLIEST, min(1.0, len(self._flying) / self._limits.window))
        if item.denied:
            patience = max(_DENIED_S, self._remote.trip.smooth or 0.0)
        return item.sent_at + min(self._limits.resend, patience * max(1, item.sends - self._eager))

    def _may_be_early(self, item: Item) -> bool:
        """Whether to repeat a request before its answer could be here.

        At the end of a transfer nothing else is to be sent, and each loss costs a whole patience. On a link that loses
        messages the window is kept full with repetitions then: few enough that hardly more leaves in all.
        """
        return (
            not self._queue
            and self._loss > _SOME_LOSS
            and self._early < _SPARE * self.sent
            and 0 < item.sends <= self._eager
            and not item.denied
        )

    def _end(self, item: Item) -> float:
        """When to give up."""
        if not item.sends:
            return float("inf")
        return item.begun_at + (self._limits.retries + 1) * self._limits.resend

    def _send(self, item: Item, now: float, out: list[Outgoing]) -> None:
        if item.phase is Phase.LEARN and not self._reads_answered and item.sends >= self._blind_after():
            self._encode(item)  # this vehicle answers no reads at all: the documented guess is all there is
            if item.key in self.refusals:
                return
        to = self._remote.system, self._remote.component
        if item.phase is Phase.SET:
            assert isinstance(item.key, str)
            assert item.kind is not None
            value = ParamValue(item.key, item.raw, item.kind)
            out.append(Outgoing(PARAM_SET_ID, pack_param_set(value, system=to[0], component=to[1])))
        else:
            payload = pack_param_read(item.key, system=to[0], component=to[1])
            out.append(Outgoing(PARAM_REQUEST_READ_ID, payload))
        if item.sends and not item.hurry and self._may_be_early(item):
            self._early += 1
        self._order += 1
        item.order = self._order
        item.sends += 1
        item.sent_at = now
        if item.sends == 1:
            item.begun_at = now
        item.hurry = False
        self.sent += 1
        self._free_at = now + self._limits.spacing if self._limits.spacing > 0 else self._free_at

    def _blind_after(self) -> int:
        return max(_BLIND_AFTER, self._limits.retries)

    def _confirm(self, item: Item, value: ParamValue) -> None:
        self.values[item.key] = value
        self._flying.pop(item.key, None)
        # how often one has to ask on this link until silence can hardly be loss any more
        self._answered_sends += item.sends
        self._loss = 1.0 - len(self.values) / self._answered_sends
        lost = 1.0 - len(self.values) / (self._answered_sends + 1)
        self._eager = min(max(_EAGER[0], math.ceil(_UNLIKELY / math.log(lost))), _EAGER[1])

    def _refuse(self, item: Item, refusal: Refusal) -> None:
        self.refusals[item.key] = refusal
        self._flying.pop(item.key, None)

    def _exhausted(self, item: Item) -> None:
        if item.error is not None:
            self._refuse(item, refused(item.key, item.error))
        elif item.answered is not None:
            kept = item.answered
            text = f"the vehicle answered with {kept.raw.hex()} (type {kept.param_type}), not with the value set"
            self._refuse(item, Refusal("VALUE_DIFFERS", text))
        else:
            times = f"asked {item.sends} time(s)" if item.sends else "not reached in the time allowed"
            self._refuse(item, Refusal("NOT_ANSWERED", f"the vehicle did not answer ({times})"))
