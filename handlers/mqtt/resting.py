"""Messages that the broker did not take just then: each leaves again after a pause, and nothing overtakes it.

put off -> the first of its kind rests, later ones behind it -> again -> it has ended -> those behind it go on

Of one kind are messages about one command on one topic, or about none: those need their order. What had left already
when the first one was put off may arrive before it; then that one is not retained any more: a topic's value is the
latest.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from petalbus.handlers.mqtt.outgoing import Item

_MOST_RETAINED: Final = 4096

_Kind = tuple[str, str | None]


class Resting:
    """``again(item)`` is called with what may leave now; on the loop."""

    def __init__(self, again: Callable[[Item], None]) -> None:
        self._again = again
        self._first: dict[_Kind, Item] = {}
        self._asleep: list[Item] = []
        self._behind: dict[_Kind, list[Item]] = {}
        self._retained: OrderedDict[str, int] = OrderedDict()

    def __iter__(self) -> Iterator[Item]:
        yield from self._asleep
        for items in self._behind.values():
            yield from items

    def __bool__(self) -> bool:
        return bool(self._asleep or self._behind)

    def put_off(self, item: Item, topic: str) -> None:
        """The broker did not take it: at its ``again_at``, or behind one from before it."""
        kind = (topic, item.about)
        first = self._first.get(kind)
        if first is not None and first is not item:
            if first.number < item.number or first not in self._asleep:  # that one is on its way again
                self._wait_behind(kind, item)
                return
            self._asleep.remove(first)
            self._wait_behind(kind, first)
        self._first[kind] = item
        self._asleep.append(item)
        if first is not item:
            item.done.add_done_callback(lambda _done: self._ended(kind, item))

    def holds(self, item: Item, topic: str) -> bool:
        """Whether it has to wait, and does so here now, behind one that was put off."""
        kind = (topic, item.about)
        first = self._first.get(kind)
        if first is None or first is item or item.number < first.number:
            return False
        self._wait_behind(kind, item)
        return True

    def rouse(self) -> None:
        """What has rested for long enough leaves again."""
        now = time.monotonic()
        asleep, self._asleep = [item for item in self._asleep if not item.done.done()], []
        for item in asleep:
            if item.again_at <= now:
                self._again(item)
            else:
                self._asleep.append(item)
        for kind, items in self._behind.items():
            self._behind[kind] = [item for item in items if not item.done.done()]

    def confirmed(self, item: Item, topic: str) -> None:
        """The broker has it."""
        if item.retain and item.number > self._retained.get(topic, -1):
            self._retained[topic] = item.number
            self._retained.move_to_end(topic)
            if len(self._retained) > _MOST_RETAINED:
                self._retained.popitem(last=False)

    def is_overtaken(self, item: Item, topic: str) -> bool:
        """Whether a later value of a retained topic is there already."""
        return item.retain and self._retained.get(topic, -1) > item.number

    def _wait_behind(self, kind: _Kind, item: Item) -> None:
        self._behind.setdefault(kind, []).append(item)

    def _ended(self, kind: _Kind, item: Item) -> None:
        if self._first.get(kind) is not item:
            return  # one from before it has taken its place
        del self._first[kind]
        given_up = not item.done.cancelled() and item.done.exception() is not None
        for other in sorted(self._behind.pop(kind, ()), key=lambda one: one.number):
            if given_up and other.put_off < item.put_off:  # else each would take as long as all of them together
                other.put_off, other.sent_before = item.put_off, item.sent_before
            if not other.done.done():
                self._again(other)
