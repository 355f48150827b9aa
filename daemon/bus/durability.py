"""What the server promises for what it has acknowledged, in its own words."""

from __future__ import annotations

from typing import Any, Final

QUESTION: Final = ("CONFIG", "GET", "appendonly", "appendfsync")
MEMORY: Final = "memory"
"""It writes no append-only file: what it holds ends with it."""

UNKNOWN: Final = "unknown"
"""Users without administration rights are not told."""


def read_answer(reply: Any) -> str:
    """The answer to QUESTION as receipts state it: ``everysec``, ``always``, ``no``, ``memory`` or ``unknown``."""
    if not isinstance(reply, list):
        return UNKNOWN
    found = dict(zip(reply[::2], reply[1::2], strict=False))
    if found.get(b"appendonly") == b"no":
        return MEMORY
    fsync: bytes = found.get(b"appendfsync", UNKNOWN.encode())
    return fsync.decode("ascii", "replace")
