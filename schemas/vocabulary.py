"""The words and limits of the wire contract: priorities, reply kinds, message states, name rules."""

from __future__ import annotations

import re
from enum import IntEnum, StrEnum
from typing import Final

MAX_PAYLOAD_BYTES: Final = 1024 * 1024
"""Largest payload of one record, in bytes, before compression."""

MAX_FIELDS: Final = 256
"""Most fields of one record, unknown ones included."""

MAX_UNKNOWN_BYTES: Final = 64 * 1024
"""Most bytes of names and values that a reader keeps without knowing them."""

MAX_FIELD_NAME_BYTES: Final = 128
MAX_STAMP: Final = 2**63 - 1
"""Largest time on the wire: nanoseconds in a signed 64-bit integer, as every language has it."""

MAX_ID_CHARS: Final = 128
MAX_TYPE_CHARS: Final = 128
MAX_NAME_CHARS: Final = 64

APP_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9_.@/-]{0,63}$"
"""App ids, topics, consumer names: no colon and no brace, because they become parts of a key."""

TYPE_PATTERN: Final = r"^[A-Za-z0-9_][A-Za-z0-9_./-]{0,127}$"
"""Record types: dotted words such as ``command`` or ``mavlink.ATTITUDE``."""

ID_PATTERN: Final = r"^[!-~]{1,128}$"
"""Message ids: 1 to 128 visible ASCII characters; the id is the deduplication key."""

APP_RULE: Final = re.compile(APP_PATTERN)
TYPE_RULE: Final = re.compile(TYPE_PATTERN)
ID_RULE: Final = re.compile(ID_PATTERN)


class Priority(IntEnum):
    """How urgent a record is. Each level of an app's inbox is a stream of its own."""

    LOW = 1
    NORMAL = 2
    HIGH = 3
    CRITICAL = 4

    @classmethod
    def parse(cls, text: str | int) -> Priority:
        """Read a level by name (any case) or number; raises ValueError naming the allowed values."""
        try:
            return cls[text.upper()] if isinstance(text, str) and not text.isdigit() else cls(int(text))
        except (KeyError, ValueError):
            allowed = ", ".join(f"{level.name.lower()} ({level.value})" for level in cls)
            raise ValueError(f"priority {text!r} is unknown; use one of {allowed}") from None


class ReplyKind(StrEnum):
    """What a reply says about the record it answers. All but the first two are final."""

    ACCEPTED = "accepted"
    PROGRESS = "progress"
    RESULT = "result"
    ERROR = "error"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """True when no further reply follows."""
        return self not in (ReplyKind.ACCEPTED, ReplyKind.PROGRESS)


class Status(StrEnum):
    """Where a message stands on its way through the bus."""

    UNKNOWN = "unknown"
    PENDING = "pending"
    DELIVERED = "delivered"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """True when the message will not change its state any more."""
        return self in (Status.COMPLETED, Status.FAILED, Status.TIMEOUT, Status.CANCELLED)
