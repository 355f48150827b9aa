"""Which record starts next: pure logic, no clock and no I/O.

- CRITICAL always goes first, and nothing else limits it but order within its lane.
- Below it the higher level goes first, but a waiting NORMAL or LOW record gets at least every ``share``-th start.
- Records of one lane (the same ordering key, else the same source) start one after the other, in stream order.
- A type runs at most so many times at once as its handler declares. Types for which places are reserved do not count
  for the others, which have the rest.
- Records whose consumer died while it ran them run one at a time, so that the next death blames the right one.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Collection, Iterator
from typing import Final, Generic, Protocol, TypeVar

from petalbus.schemas.vocabulary import Priority


class Schedulable(Protocol):
    """What the scheduler needs to know of a record."""

    level: Priority
    lane: str
    kind: str
    alone: bool

    @property
    def order(self) -> tuple[int, int]:
        """The place in the stream: its id as numbers."""
        ...


T = TypeVar("T", bound=Schedulable)

_ORDINARY: Final = (Priority.HIGH, Priority.NORMAL, Priority.LOW)
MAX_IDLE_LANES: Final = 256
_OLDER: Final = -(1 << 62)
_ALONE: Final = "\0alone"
_OTHERS: Final = "\0others"


class _Lane(Generic[T]):
    """Records that must start one after the other."""

    __slots__ = ("busy", "items", "key")

    def __init__(self, key: str) -> None:
        self.key = key
        self.items: deque[tuple[int, T]] = deque()
        self.busy = False


class _Level(Generic[T]):
    """The lanes of one priority level and which of them could start."""

    __slots__ = ("lanes", "ready", "skipped", "waiting")

    def __init__(self) -> None:
        self.lanes: dict[str, _Lane[T]] = {}
        self.ready: list[tuple[int, str]] = []
        self.waiting = 0
        self.skipped = 0


class Scheduler(Generic[T]):
    """The records that a consumer has read and not started yet. ``share``: see the module.

    At most ``others`` records of types that are not in ``apart`` run at the same time; CRITICAL ones do not count.
    """

    def __init__(self, *, share: int = 16, others: int | None = None, apart: Collection[str] = ()) -> None:
        self._others = others
        self._apart = frozenset(apart)
        self._others_running = 0
        self._levels: dict[Priority, _Level[T]] = {level: _Level() for level in Priority}
        self._share = share
        self._arrivals = 0
        self._limits: dict[str, int] = {}
        self._running: dict[str, int] = {}
        self._parked: dict[str, list[tuple[Priority, int, str]]] = {}
        self._alone: T | None = None

    def limit(self, kind: str, at_once: int | None) -> None:
        """Let at most ``at_once`` records of type ``kind`` run at the same time; CRITICAL ones do not count.

        0: none starts, CRITICAL ones neither.
        """
        if at_once == self._limits.get(kind):
            return
        if at_once is None:
            del self._limits[kind]
        else:
            self._limits[kind] = at_once
        self._unpark(kind)  # what waited for the old limit is looked at again

    def waiting(self, level: Priority) -> int:
        """Records of one level that have not started."""
        return self._levels[level].waiting

    @property
    def ready(self) -> bool:
        """True when some record could start now (its type's limit not considered)."""
        levels = self._levels
        return bool(
            levels[Priority.NORMAL].ready
            or levels[Priority.HIGH].ready
            or levels[Priority.LOW].ready
            or levels[Priority.CRITICAL].ready
        )

    def __len__(self) -> int:
        return sum(level.waiting for level in self._levels.values())

    def __iter__(self) -> Iterator[T]:
        for level in self._levels.values():
            for lane in level.lanes.values():
                for _, item in lane.items:
                    yield item

    def push(self, item: T, *, older: bool = False) -> None:
        """Add a record; ``older`` puts one that was taken over, or comes back, at its place in stream order."""
        level = self._levels[item.level]
        lane = level.lanes.get(item.lane)
        if lane is None:
            lane = level.lanes[item.lane] = _Lane(item.lane)
        self._arrivals += 1
        if older:
            self._insert(level, lane, item)
        else:
            lane.items.append((self._arrivals, item))
            if len(lane.items) == 1 and not lane.busy:
                heapq.heappush(level.ready, (self._arrivals, lane.key))
        level.waiting += 1

    def pop(self, *, critical_only: bool = False) -> T | None:
        """The next record to start, or None. Call ``done`` with it when it has ended."""
        if self._levels[Priority.CRITICAL].ready:
            item = self._take(Priority.CRITICAL)
            if item is not None:
                return item
        if critical_only:
            return None
        for level in self._order():
            if self._levels[level].ready:
                item = self._take(level)
                if item is not None:
                    self._account(level)
                    return item
        return None

    def done(self, item: T) -> None:
        """The record has ended (or is put back with ``push``): its lane and its type may go on."""
        level = self._levels[item.level]
        lane = level.lanes[item.lane]
        lane.busy = False
        if lane.items:
            heapq.heappush(level.ready, (lane.items[0][0], lane.key))
        elif len(level.lanes) > MAX_IDLE_LANES:
            del level.lanes[item.lane]
        if item.level is not Priority.CRITICAL:
            self._release(item.kind)
            if self._others is not None and item.kind not in self._apart:
                self._others_running -= 1
                self._unpark(_OTHERS)
            if item is self._alone:
                self._alone = None
                self._unpark(_ALONE)

    def remove(self, item: T) -> bool:
        """Take out a record that has not started; False when it is not waiting."""
        level = self._levels[item.level]
        lane = level.lanes.get(item.lane)
        if lane is None:
            return False
        for index, (_, waiting) in enumerate(lane.items):
            if waiting is item:
                del lane.items[index]
                level.waiting -= 1
                if not lane.items and not lane.busy:
                    del level.lanes[item.lane]
                elif index == 0 and not lane.busy:
                    # the lane may wait for the limit of the type that was first: the next one may be of another
                    heapq.heappush(level.ready, (lane.items[0][0], lane.key))
                return True
        return False

    def _insert(self, level: _Level[T], lane: _Lane[T], item: T) -> None:
        at = 0
        for _, other in lane.items:
            if other.order > item.order:
                break
            at += 1
        lane.items.insert(at, (_OLDER + self._arrivals, item))
        if at == 0 and not lane.busy:
            heapq.heappush(level.ready, (lane.items[0][0], lane.key))

    def _order(self) -> tuple[Priority, ...]:
        levels = self._levels
        for level in (Priority.LOW, Priority.NORMAL):
            if levels[level].waiting and levels[level].skipped >= self._share - 1:
                return (level, *_ORDINARY)
        return _ORDINARY

    def _account(self, started: Priority) -> None:
        for level in (Priority.NORMAL, Priority.LOW):
            state = self._levels[level]
            if level is started:
                state.skipped = 0
            elif level < started and state.waiting:
                state.skipped += 1

    def _take(self, priority: Priority) -> T | None:
        level = self._levels[priority]
        while level.ready:
            arrival, key = heapq.heappop(level.ready)
            lane = level.lanes.get(key)
            if lane is None or lane.busy or not lane.items:
                continue  # an outdated entry: the lane was served, or emptied by remove
            item = lane.items[0][1]
            limit = self._limits.get(item.kind)
            if limit == 0:  # it has no handler yet, however urgent it is
                self._parked.setdefault(item.kind, []).append((priority, arrival, key))
                continue
            if priority is not Priority.CRITICAL:
                if (what := self._waits_for(item)) is not None:
                    self._parked.setdefault(what, []).append((priority, arrival, key))
                    continue
                self._count(item)
            lane.items.popleft()
            lane.busy = True
            level.waiting -= 1
            return item
        return None

    def _waits_for(self, item: T) -> str | None:
        """What must end before it may start; None: it may now."""
        limit = self._limits.get(item.kind)
        if limit is not None and self._running.get(item.kind, 0) >= limit:
            return item.kind
        if self._others is not None and item.kind not in self._apart and self._others_running >= self._others:
            return _OTHERS
        return _ALONE if item.alone and self._alone is not None else None

    def _count(self, item: T) -> None:
        self._running[item.kind] = self._running.get(item.kind, 0) + 1
        if self._others is not None and item.kind not in self._apart:
            self._others_running += 1
        if item.alone:
            self._alone = item

    def _release(self, kind: str) -> None:
        left = self._running.get(kind, 0) - 1
        if left > 0:
            self._running[kind] = left
        else:
            self._running.pop(kind, None)
        self._unpark(kind)

    def _unpark(self, kind: str) -> None:
        for priority, arrival, key in self._parked.pop(kind, ()):
            heapq.heappush(self._levels[priority].ready, (arrival, key))
