"""What a record asks for: which file, under which key, how urgent, until when."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from petalbus.handlers.bucket.names import TEMPLATE, checked_key, make_key, may_repeat
from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.stamps import BOOT_ID, boot_clock_ns

if TYPE_CHECKING:
    from petalbus.handlers.bucket.gate import Rank
    from petalbus.schemas.record import Record
    from petalbus.schemas.vocabulary import Priority

MAX_METADATA_BYTES: Final = 1024
PREFIX: Final = "flight_logs/"


@dataclass(frozen=True, slots=True)
class Order:
    """One record ``bucket.upload``. ``deadline_ns``: on this boot's clock."""

    id: str
    rank: Rank
    priority: Priority
    path: Path
    s3_key: str | None
    filename: str | None
    template: str
    prefix: str
    metadata: dict[str, str]
    documented: bool
    deadline_ns: int | None
    source: str

    @classmethod
    def of(cls, record: Record, number: int) -> Order:
        """Read a record; ``number``: its place where the record does not say. Raises RecordInvalid, BucketError."""
        data = record.data
        if not isinstance(data, dict):
            raise RecordInvalid("data", "is no object", limit="an object with path")
        path = Path(_text(data, "path") or "")
        if not path.is_absolute():
            raise RecordInvalid("path", f"is {str(path)!r}", limit="the full path of a file on this machine")
        s3_key = _text(data, "s3_key")
        filename = _text(data, "filename")
        order = cls(
            id=record.id,
            rank=(-int(record.priority), _place(record, number)),
            priority=record.priority,
            path=path,
            s3_key=s3_key if s3_key is None else checked_key(s3_key),
            filename=filename,
            template=_text(data, "template") or TEMPLATE,
            prefix=_text(data, "prefix") or PREFIX,
            metadata=_metadata(data.get("metadata")),
            documented=data.get("documented_magic") is True,
            deadline_ns=record.deadline if record.boot_id == BOOT_ID else None,
            source=record.source,
        )
        order.make_key("machine")
        return order

    @property
    def may_repeat(self) -> bool:
        """Whether the key that is made may be another log's. One that was asked for is taken as it is."""
        return self.s3_key is None and may_repeat(self.template)

    def make_key(self, machine: str, *, apart: bool = False) -> str:
        """The key: the one asked for, or a new one. Raises RecordInvalid, BucketError when it is no fit key.

        ``apart``: see ``names.make_key``.
        """
        if self.s3_key is not None:
            return self.s3_key
        try:
            name = self.filename or self.path.name
            return make_key(self.template, machine=machine, name=name, prefix=self.prefix, apart=apart)
        except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
            text = f"{self.template!r} is none ({error!r})"
            raise RecordInvalid("template", text, limit="members machine, stamp, uuid, name, prefix") from None

    def left(self) -> float | None:
        """Seconds until the deadline; None where there is none."""
        return None if self.deadline_ns is None else (self.deadline_ns - boot_clock_ns()) / 1e9


def _place(record: Record, number: int) -> int:
    head, _, tail = (record.stream_id or "").partition("-")
    return (int(head) << 32) + int(tail) if head.isdigit() and tail.isdigit() else number


def _text(data: dict[str, Any], name: str) -> str | None:
    value = data.get(name)
    if value is not None and (not isinstance(value, str) or not value or "\0" in value):
        raise RecordInvalid(name, f"is {value!r}", limit="a text")
    return value


def _metadata(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(one, str) for pair in value.items() for one in pair):
        raise RecordInvalid("metadata", "is no object of texts", limit="names and texts")
    plain = all(one.isascii() and one.isprintable() for pair in value.items() for one in pair)
    if not plain or sum(len(name) + len(text) for name, text in value.items()) > MAX_METADATA_BYTES:
        raise RecordInvalid("metadata", "does not fit into headers", limit=f"ASCII, {MAX_METADATA_BYTES} bytes in all")
    return {name.lower(): text for name, text in value.items()}
