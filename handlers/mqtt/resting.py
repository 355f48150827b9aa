"""Messages that the broker did not take just then: each leaves again after a pause.

put off -> the first of its kind rests, later ones behind it -> again -> it has ended -> those behind it go on

Of one kind are messages about one command on one topic, or retained ones of one topic: their order decides what the
last word is. All others rest each for itself, and hold up none. What had left already when the first one was put off
may arrive before it; then that one is not retained any more: a topic's value is the latest.

After a quota one of those behind goes first, and the others when it was taken at once: a full broker is not given all
of them together. After one that was given up for a code that speaks against messages like it, all go on in doubt:
each of them is given up at such a code, too, until one was taken, or a quota was named.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from petalbus.schemas.stamps import boot_clock_ns

if TYPE_CHECKING:
    from petalbus.handlers.mqtt.outgoing import Item

_MOST_RETAINED: Final = 4096
_FADES_NS: Final = 120 * 10**9
"""Numbers are places in a stream, by the server's clock. Of what is stored so much later they say nothing: the server
may have come back with an empty stream and a clock that is behind."""

_Kind = tuple[str, str | None]


def _kind_of(item: Item, topic: str) -> _Kind | None:
    """Whose order it has to keep; None: nobody's."""
    return (topic, item.about) if item.retain or item.about is not None else None


@dataclass(slots=True)
class _Line:
    first: Item
    behind: list[Item] = field(default_factory=list)
    patient: bool = False
    """The broker spoke of a quota when it last did not take the first one."""
    given_up: bool = False
    """The first one was given up, for a code that speaks against it."""


class Resting:
    """``again(item)`` is called with what may leave now; on the loop."""

    def __init__(self, again: Callable[[Item], None]) -> None:
        self._again = again
        self._lines: dict[_Kind, _Line] = {}
        self._asleep: list[Item] = []
        self._doubted: dict[_Kind, set[Item]] = {}
        self._retained: OrderedDict[str, tuple[int, int]] = OrderedDict()

    def __iter__(self) -> Iterator[Item]:
        yield from self._asleep
        for line in self._lines.values():
            yield from line.behind

    def __len__(self) -> int:
        return len(self._asleep) + sum(len(line.behind) for line in self._lines.values())

    def put_off(self, item: Item, topic: str, *, patient: bool) -> None:
        """The broker did not take it: at its ``again_at``, or behind one from before it. ``patient``: see NotNow."""
        kind = _kind_of(item, topic)
        if kind is None:
            self._asleep.append(item)
            return
        if patient:
            self._doubted.pop(kind, None)
        line = self._lines.get(kind)
        if line is None:
            line = self._lead(kind, item, [])
        elif line.first is not item:
            if line.first.number < item.number or line.first not in self._asleep:  # that one is on its way again
                line.behind.append(item)
                return
            self._asleep.remove(line.first)
            line = self._lead(kind, item, [*line.behind, line.first])
        line.patient = patient
        self._asleep.append(item)

    def holds(self, item: Item, topic: str) -> bool:
        """Whether it has to wait, and does so here now, behind one that was put off."""
        kind = _kind_of(item, topic)
        line = None if kind is None else self._lines.get(kind)
        if line is None or line.first is item or item.number < line.first.number:
            return False
        line.behind.append(item)
        return True

    def rouse(self, hurry: Callable[[Item, str], bool]) -> None:
        """What has rested for long enough leaves again; what ``hurry`` names and others wait for, now."""
        now = time.monotonic()
        for line in self._lines.values():
            line.behind = [item for item in line.behind if not item.done.done()]
        leading = {line.first: kind[0] for kind, line in self._lines.items() if line.behind and not line.patient}
        asleep, self._asleep = [item for item in self._asleep if not item.done.done()], []
        for item in asleep:
            if item.again_at <= now or (item in leading and hurry(item, leading[item])):
                self._again(item)
            else:
                self._asleep.append(item)

    def give_up(self, item: Item, topic: str) -> None:
        """It will be ended now, for a code that speaks against it: those behind it are in doubt."""
        kind = _kind_of(item, topic)
        line = None if kind is None else self._lines.get(kind)
        if line is not None and line.first is item:
            line.given_up = True

    def doubts(self, item: Item, topic: str) -> bool:
        """Whether it waited behind one that was given up, and none of its kind was taken since then."""
        kind = _kind_of(item, topic)
        return kind is not None and item in self._doubted.get(kind, ())

    def confirmed(self, item: Item, topic: str) -> None:
        """The broker has it."""
        if (kind := _kind_of(item, topic)) is not None:
            self._doubted.pop(kind, None)
        if item.retain and not self.is_overtaken(item, topic):
            self._retained[topic] = (item.number, boot_clock_ns())
            self._retained.move_to_end(topic)
            if len(self._retained) > _MOST_RETAINED:
                self._retained.popitem(last=False)

    def is_overtaken(self, item: Item, topic: str) -> bool:
        """Whether a later value of a retained topic is there already."""
        number, since = self._retained.get(topic, (-1, 0))
        return item.retain and number > item.number and item.stored_ns < since + _FADES_NS

    def _lead(self, kind: _Kind, item: Item, behind: list[Item]) -> _Line:
        line = self._lines[kind] = _Line(item, behind)
        item.done.add_done_callback(lambda _done: self._ended(kind, item))
        return line

    def _ended(self, kind: _Kind, item: Item) -> None:
        line = self._lines.get(kind)
        if line is None or line.first is not item:
            return  # one from before it has taken its place
        del self._lines[kind]
        waiting = sorted((one for one in line.behind if not one.done.done()), key=lambda one: one.number)
        if line.given_up:
            for other in waiting:
                self._doubt(kind, other)
        elif line.patient and waiting:
            self._lead(kind, waiting[0], waiting[1:])
            del waiting[1:]
        for other in waiting:
            self._again(other)

    def _doubt(self, kind: _Kind, item: Item) -> None:
        self._doubted.setdefault(kind, set()).add(item)
        item.done.add_done_callback(lambda _done: self._cleared(kind, item))

    def _cleared(self, kind: _Kind, item: Item) -> None:
        doubted = self._doubted.get(kind, set())
        doubted.discard(item)
        if not doubted:
            self._doubted.pop(kind, None)
