"""What a child program is told to do: one flat list of ``name=value`` words, so that a C program can read it too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The parameters of one part in one turn. Not every part uses each of them."""

    address: str = ""
    """Path of the Redis server's unix socket, or the URL of the NATS server."""

    count: int = 0
    """Records (or requests) that are measured."""

    warmup: int = 0
    """Records (or requests) before them that are not."""

    rate: int = 0
    """Records a second of a paced sender."""

    in_flight: int = 64
    """Records that may wait for their acknowledgement at once."""

    size: int = 300
    """Bytes of a record's JSON payload."""

    work_us: int = 0
    """Microseconds that a handler keeps its process busy."""

    variant: str = ""
    """What the peer shall use, where it offers more than one way."""

    def words(self) -> list[str]:
        """The command line's form; what has its default is left out."""
        return [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default]

    @classmethod
    def parse(cls, words: Iterable[str]) -> Job:
        """Read ``words``. Raises ValueError for a name that is not known."""
        numbers = {f.name for f in fields(cls) if isinstance(f.default, int)}
        given: dict[str, int | str] = {}
        for word in words:
            name, _, value = word.partition("=")
            if name not in cls.__slots__:
                raise ValueError(f"a job has no {name!r}")
            given[name] = int(value) if name in numbers else value
        return cls(**given)  # type: ignore[arg-type]  # sorted by kind just above
