"""Entries of a compact topic as the XADD commands that append them, packed for one write."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from petalbus.daemon.bus.envelope import bulk
from petalbus.schemas.compact import CompactEntry

_HEAD: Final = b"*9\r\n$4\r\nXADD\r\n%b$1\r\n*\r\n$1\r\nk\r\n%b$1\r\nm\r\n%b$1\r\nd\r\n"
_MOST_HEADS: Final = 256


def pack_entries(stream: str, entries: Iterable[CompactEntry]) -> tuple[bytes, int]:
    """The commands, and how many they are.

    Entries that came at the same time are of few kinds: what comes before the payload is packed once for them.
    """
    key = bulk(stream.encode())
    heads: dict[tuple[str, int], bytes] = {}
    out: list[bytes] = []
    for kind, mono, data in entries:
        head = heads.get((kind, mono))
        if head is None:
            if len(heads) >= _MOST_HEADS:
                heads.clear()
            head = heads[kind, mono] = _HEAD % (key, bulk(kind.encode()), bulk(b"%d" % mono))
        out.append(b"%b$%d\r\n%b\r\n" % (head, len(data), data))
    return b"".join(out), len(out)
