"""The compact form of high-rate topics: what is constant is declared once, an entry holds what varies.

An entry has three fields: ``k`` (the kind, the varying end of the type), ``m`` (boot-clock ns) and ``d`` (the payload's
raw bytes). Everything else a reader needs lies in one hash beside the stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import orjson

from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.record import Record
from petalbus.schemas.stamps import BOOT_ID


class CompactEntry(NamedTuple):
    """What varies: the kind, the boot-clock time in ns, the payload."""

    kind: str
    mono: int
    data: bytes

    def to_fields(self) -> tuple[bytes, ...]:
        """The flat list for XADD."""
        return (b"k", self.kind.encode(), b"m", b"%d" % self.mono, b"d", self.data)


@dataclass(frozen=True, slots=True)
class CompactForm:
    """What is constant for a topic. ``names`` translates a kind into the end of the record type."""

    topic: str
    type_prefix: str
    source: str
    content_type: str = "application/octet-stream"
    names: Mapping[str, str] = field(default_factory=dict)
    boot_id: str = BOOT_ID

    def to_hash(self) -> dict[str, bytes]:
        """The declaration as it is stored beside the stream."""
        return {
            "topic": self.topic.encode(),
            "type_prefix": self.type_prefix.encode(),
            "source": self.source.encode(),
            "content_type": self.content_type.encode(),
            "names": orjson.dumps(dict(self.names)),
            "boot_id": self.boot_id.encode(),
        }

    @classmethod
    def from_hash(cls, stored: Mapping[bytes, bytes]) -> CompactForm:
        """Read a declaration; raises RecordInvalid when a field is missing or broken."""
        try:
            known = {name: stored[name.encode()].decode() for name in _CONSTANT if name.encode() in stored}
            names = orjson.loads(stored[b"names"])
            texts = {kind: str.__str__(end) for kind, end in names.items()}  # a TypeError for what is no text
            return cls(names=texts, **known)
        except (AttributeError, TypeError, KeyError, ValueError) as error:
            raise RecordInvalid("form", f"is not a compact topic's declaration: {error}") from None

    def decode(self, stream_id: str, fields: Sequence[bytes]) -> Record:
        """Expand one entry into a full record; its id is the topic and the stream id. Raises RecordInvalid."""
        values = dict(zip(fields[::2], fields[1::2], strict=False))
        try:
            kind, mono, data = values.pop(b"k").decode(), int(values.pop(b"m")), values.pop(b"d")
        except (KeyError, ValueError) as error:
            raise RecordInvalid(
                "compact", f"entry {stream_id} of topic {self.topic!r} lacks or breaks {error}"
            ) from None
        record: dict[str, Any] = {
            "id": f"{self.topic}@{stream_id}",
            "type": self.type_prefix + self.names.get(kind, kind),
            "source": self.source,
            "data": data,
            "content_type": self.content_type,
            "boot_id": self.boot_id,
            "mono": mono,
            "stream_id": stream_id,
        }
        if values:  # fields that a later version writes
            record = {name.decode("utf-8", "backslashreplace"): value for name, value in values.items()} | record
        return Record.checked(record)


_CONSTANT: Final = ("topic", "type_prefix", "source", "content_type", "boot_id")


def is_compact(fields: Sequence[bytes]) -> bool:
    """True when an entry is in the compact form."""
    return b"d" in fields[::2] and b"k" in fields[::2]
