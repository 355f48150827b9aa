"""The interface of the cloud's tables, whichever kind they are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from petalbus.handlers.database.writes import Item, Policy, Verdict, Write

MAX_ROWS: Final = 10_000
MAX_ANSWER_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Done:
    """What came of a write. ``answer``: the cloud's, or the item.

    Where it was not applied: ``stored_seq`` and ``stored_by``, the number and the writer that the item has.
    """

    answer: Any
    verdict: Verdict = Verdict.APPLY
    stored_seq: Any = None
    stored_by: Any = None


class Tables(ABC):
    """All calls raise TableError. Nothing is sent, and nothing large is imported, before the first call."""

    kind: str
    problem: str = ""
    """Why the last call did not reach the cloud; empty when it did."""

    @property
    @abstractmethod
    def where(self) -> str:
        """Where the tables are, for people."""

    @abstractmethod
    async def get(self, machine: str, table: str, key: str, value: str) -> Item:
        """One item of this machine. Raises NotThere, for deleted ones too."""

    @abstractmethod
    async def scan(self, machine: str, table: str, filters: Sequence[Mapping[str, Any]]) -> list[Item]:
        """This machine's items that equal all filters and were not deleted; 10,000 and 64 MiB at most, else Refused.

        A filter has ``filter_key_name`` and ``filter_key_value``.
        """

    @abstractmethod
    async def write(self, write: Write, policy: Policy | None) -> Done:
        """Write an item. With a policy a repetition changes nothing; without one it is simply written, unmarked."""

    @abstractmethod
    async def write_many(
        self, machine: str, table: str, key: str, items: Iterable[Mapping[str, Any]]
    ) -> dict[str, str]:
        """Write items whole, whatever is there, each with its key among its members. Those that failed: key -> why."""

    @abstractmethod
    async def close(self) -> None:
        """Close the connections."""
