"""The compact form of high-rate topics: what is constant is declared once, an entry holds what varies.

An entry has three fields: ``k`` (the kind, the varying end of the type), ``m`` (boot-clock ns) and ``d`` (the payload's
raw bytes). Everything else a reader needs lies in one hash beside the stream. That hash also tells which entries are of
which boot: what was written before a reboot keeps the boot id that its times belong to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import orjson

from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.record import Record
from petalbus.schemas.stamps import BOOT_ID

MAX_BOOTS: Final = 64
"""Boots that a declaration remembers. Times of entries from before them are of no known boot."""

MAX_UNNAMED: Final = 1024
"""Kinds without a declared name that a reader remembers, so that each is looked up once."""

StreamId = tuple[int, int]
Boots = tuple[tuple[StreamId, str], ...]
"""Where each boot begins in a topic (its first possible stream id), and its boot id; oldest first."""


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
    """What is constant for a topic. ``names`` translates a kind into the end of the record type.

    ``boot_id`` is the last publisher's. ``boots`` is kept by the server and empty at a publisher.
    """

    topic: str
    type_prefix: str
    source: str
    content_type: str = "application/octet-stream"
    names: Mapping[str, str] = field(default_factory=dict)
    boot_id: str = BOOT_ID
    boots: Boots = ()

    def to_hash(self) -> dict[str, bytes]:
        """What a publisher declares. The server adds ``boots`` when it stores this beside the stream."""
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
            return cls(names=texts, boots=read_boots(stored.get(b"boots")), **known)
        except (AttributeError, TypeError, KeyError, ValueError) as error:
            raise RecordInvalid("form", f"is not a compact topic's declaration: {error}") from None

    def boot_at(self, stream_id: str) -> str | None:
        """The boot of one entry; None when it is older than all that are remembered."""
        return boot_at(self.boots, stream_id) if self.boots else self.boot_id

    def type_of(self, fields: Sequence[bytes]) -> str:
        """The record type of one entry, without decoding it."""
        kind = next((value for name, value in zip(fields[::2], fields[1::2], strict=False) if name == b"k"), b"")
        text = kind.decode("utf-8", "backslashreplace")
        return self.type_prefix + self.names.get(text, text)

    def decode(self, stream_id: str, fields: Sequence[bytes]) -> Record:
        """Expand one entry into a full record; its id is the topic and the stream id. Raises RecordInvalid.

        Without a known boot it has no ``mono`` either: a boot clock's time means nothing then.
        """
        values = dict(zip(fields[::2], fields[1::2], strict=False))
        try:
            kind, mono, data = values.pop(b"k").decode(), int(values.pop(b"m")), values.pop(b"d")
        except (KeyError, ValueError) as error:
            raise RecordInvalid(
                "compact", f"entry {stream_id} of topic {self.topic!r} lacks or breaks {error}"
            ) from None
        boot_id = self.boot_at(stream_id)
        record: dict[str, Any] = {
            "id": f"{self.topic}@{stream_id}",
            "type": self.type_prefix + self.names.get(kind, kind),
            "source": self.source,
            "data": data,
            "content_type": self.content_type,
            "boot_id": boot_id,
            "mono": None if boot_id is None else mono,
            "stream_id": stream_id,
        }
        if values:  # fields that a later version writes
            record = {name.decode("utf-8", "backslashreplace"): value for name, value in values.items()} | record
        return Record.checked(record)


class Declared:
    """A topic's declaration as one reader knows it, and when to read it again."""

    __slots__ = ("_began", "_unnamed", "form")

    def __init__(self) -> None:
        self.form: CompactForm | None = None
        self._unnamed: set[bytes] = set()
        self._began = 0.0

    def outdated(self, stream_id: str, fields: Sequence[bytes]) -> bool:
        """True when ``form`` has to be read before this entry is decoded.

        That is so at first; for a kind without a name, as its source may have been restarted with more names; and when
        the source's clock leaves the stream's, as its machine may have been restarted. Asked once for each entry.
        """
        values = dict(zip(fields[::2], fields[1::2], strict=False))
        kind, mono = values.get(b"k", b""), values.get(b"m", b"")
        outdated = self.form is None
        if mono.isdigit() and len(mono) < _MONO_DIGITS:
            # Boot clock and stream ids advance alike, so their difference is the moment of the boot. A later boot
            # began after the last entry of the earlier one; smaller steps are delays and corrections of the wall clock.
            began = _place(stream_id)[0] / 1e3 - int(mono) / 1e9
            if abs(began - self._began) > _SAME_BOOT_S:
                self._began = began
                outdated = True
        unnamed = self.form is None or kind.decode("utf-8", "replace") not in self.form.names
        if unnamed and kind not in self._unnamed and len(self._unnamed) < MAX_UNNAMED:
            self._unnamed.add(kind)
            outdated = True
        return outdated


def read_boots(text: bytes | None) -> Boots:
    """Read a declaration's list of boots: JSON, ``[[first stream id, boot id], ...]``. Raises RecordInvalid."""
    try:
        pairs = orjson.loads(text or b"[]")
        return tuple((_place(first), str.__str__(boot_id)) for first, boot_id in pairs)
    except (AttributeError, TypeError, ValueError) as error:
        raise RecordInvalid("form", f"has a broken list of boots: {error}") from None


def boot_at(boots: Boots, stream_id: str) -> str | None:
    """The boot whose entries lie where ``stream_id`` does; None before all of them."""
    place = _place(stream_id)
    for first, boot_id in reversed(boots):
        if place >= first:
            return boot_id
    return None


def _place(stream_id: str) -> StreamId:
    ms, _, number = stream_id.partition("-")
    return int(ms), int(number or 0)


_SAME_BOOT_S: Final = 1.0
_MONO_DIGITS: Final = 20
_CONSTANT: Final = ("topic", "type_prefix", "source", "content_type", "boot_id")


def is_compact(fields: Sequence[bytes]) -> bool:
    """True when an entry is in the compact form."""
    return b"d" in fields[::2] and b"k" in fields[::2]
