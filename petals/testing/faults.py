"""Faults that a test asks for: what is broken, how often, and the list of what was."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["drop", "delay", "duplicate", "crash"]

MAX_DROPS: Final = 3
"""Times that the answer to one and the same request is lost at most: every test comes to an end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """How often what goes wrong: probabilities from 0 to 1, times in seconds.

    ``drop``: the petal's connection is cut, with the answer to one of its requests lost; the server has executed the
    request. ``delay``: each answer comes so much later (least, most). ``duplicate``: the test's own record is sent a
    second time, with the same id. ``crash``: the petal dies after a record was delivered to it and before it was
    acknowledged, without a farewell; a new instance of it is started.

    Each decision depends on ``seed`` and on what it is about (the first record, its second delivery, ...), and on
    nothing else: the same seed breaks the same things. Raises ValueError for a number out of range.
    """

    seed: int = 0
    drop: float = 0.0
    delay: tuple[float, float] = (0.0, 0.0)
    duplicate: float = 0.0
    crash: float = 0.0

    def __post_init__(self) -> None:
        for name in ("drop", "duplicate", "crash"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"faults: {name}={value!r} is no probability; give 0 to 1")
        least, most = self.delay
        if not 0.0 <= least <= most <= 10.0:
            raise ValueError(f"faults: delay={self.delay!r} must be (least, most) in seconds, 0 to 10")


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault that was injected. ``subject``: what it hit, records being named ``#1``, ``#2`` in sending order."""

    kind: Kind
    subject: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind} {self.subject}: {self.detail}"


class FaultRun:
    """The faults of one run. ``log`` lists every one that was injected, delays included."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.log: list[Fault] = []
        self.names: dict[bytes, str] = {}
        self._seen: Counter[tuple[str, str]] = Counter()

    def name(self, message_id: str) -> str:
        """Give a record of the test the next number; its decisions go by that, not by the id."""
        return self.names.setdefault(message_id.encode(), f"#{len(self.names) + 1}")

    def count(self, kind: Kind) -> int:
        """How many faults of a kind were injected so far."""
        return sum(fault.kind == kind for fault in self.log)

    def calm(self) -> None:
        """From now on nothing goes wrong."""
        self.faults = Faults(seed=self.faults.seed)

    def first(self, subject: str) -> bool:
        """Is this asked for the first time? How often a read finds a record again depends on time, not on the seed."""
        return self._turn("first", subject) == 0

    def drop(self, subject: str, detail: str) -> bool:
        """Is the answer to this request lost?"""
        turn = self._turn("drop", subject)
        return turn < MAX_DROPS and self._hit("drop", subject, turn, self.faults.drop, detail)

    def delay(self, subject: str) -> float:
        """By how many seconds is this answer late?"""
        least, most = self.faults.delay
        if not most:
            return 0.0
        seconds = least + (most - least) * self._draw("delay", subject, self._turn("delay", subject))
        if seconds > 0:
            self.log.append(Fault("delay", subject, f"by {seconds:.4f} s"))
        return seconds

    def duplicate(self, subject: str) -> bool:
        """Is this record of the test sent twice?"""
        return self._hit("duplicate", subject, 0, self.faults.duplicate, "sent again with the same id")

    def crash(self, subject: str) -> Literal["", "before", "after"]:
        """Does this record kill the petal, and if so before its handler begins, or after it has ended?

        One record kills once. Asked about both moments of the same record, the answer is the same.
        """
        if self._draw("crash", subject, 0) >= self.faults.crash or self._seen["crashed", subject]:
            return ""
        return "before" if self._draw("moment", subject, 0) < 0.5 else "after"

    def crashed(self, subject: str, detail: str) -> None:
        """The crash has happened."""
        self._seen["crashed", subject] += 1
        self.log.append(Fault("crash", subject, detail))

    def _hit(self, kind: Kind, subject: str, turn: int, probability: float, detail: str) -> bool:
        hit = self._draw(kind, subject, turn) < probability
        if hit:
            self.log.append(Fault(kind, subject, detail))
        return hit

    def _turn(self, kind: str, subject: str) -> int:
        turn = self._seen[kind, subject]
        self._seen[kind, subject] += 1
        return turn

    def _draw(self, kind: str, subject: str, turn: int) -> float:
        return random.Random(f"{self.faults.seed}|{kind}|{subject}|{turn}").random()  # noqa: S311  # no secret: a test
