"""The adopt script's call: built from admissions and dead letters, a bounded batch at a time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from petalbus.daemon.bus.keys import GROUP, Keys
from petalbus.daemon.services.admission import Admission
from petalbus.schemas.payloads import encode_json
from petalbus.schemas.stamps import BOOT_ID, boot_clock_ns, new_id
from petalbus.schemas.vocabulary import APP_RULE, ID_RULE, TYPE_RULE, Priority, ReplyKind

MAX_LETTER_ITEMS: Final = 1024
"""Names and values of a raw record that its dead letter keeps: the record may be anything, a letter is bounded."""

MAX_LETTER_VALUE: Final = 1024 * 1024 + 4096
"""Bytes of one value that a dead letter keeps whole; of a longer one it keeps the beginning."""

_CUT_TO: Final = 64 * 1024
Argument = bytes | str | int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the script is told once a call."""

    group: str
    window_ids: int
    short_window_ids: int
    inbox_limit: int
    keep_replies: int


class BatchCall:
    """Keys and arguments of one call of the adopt script."""

    def __init__(self, keys: Keys, limits: Limits) -> None:
        self._names = keys
        self._limits = limits
        self.keys = [keys.ingest, keys.ids, keys.ids_before, *short_windows(keys)]
        self._index = {key: number for number, key in enumerate(self.keys, start=1)}
        self._items: list[Argument] = []
        self._count = 0

    @property
    def arguments(self) -> list[Argument]:
        """The call's ARGV."""
        limits = self._limits
        windows = (limits.window_ids, limits.short_window_ids)
        return [limits.group, *windows, limits.inbox_limit, limits.keep_replies, GROUP, self._count, *self._items]

    def __len__(self) -> int:
        return self._count

    def admission(self, entry: bytes, admission: Admission) -> None:
        """Adopt a valid record."""
        record = admission.record
        inboxes = 0
        if admission.what == "reply":
            inboxes = min(self._key(self._names.inbox(record.source, level)) for level in Priority)
        head = (entry, admission.what, self._key(admission.stream), record.id, admission.claim)
        self._add((*head, admission.state, record.reply_to or "", inboxes), record.to_fields())

    def letter(self, entry: bytes, stream: str, fields: list[bytes]) -> None:
        """Settle an entry as a dead letter."""
        self._add((entry, "dead", self._key(stream), "", "", "", "", 0), fields)

    def also(self, stream: str, fields: list[bytes]) -> None:
        """Append a reply, if the entry added before is settled by this call."""
        self._add(("", "also", self._key(stream), "", "", "", "", 0), fields)

    def _add(self, head: tuple[Argument, ...], fields: list[bytes]) -> None:
        self._items += (*head, len(fields), *fields)
        self._count += 1

    def _key(self, key: str) -> int:
        number = self._index.get(key)
        if number is None:
            self.keys.append(key)
            number = self._index[key] = len(self.keys)
        return number


def short_windows(keys: Keys) -> tuple[str, str]:
    """The two generations of ids that are remembered for a short while only: records to topics, and replies."""
    return f"{keys.prefix}ids:short:current", f"{keys.prefix}ids:short:before"


def letter_fields(fields: list[bytes], *, reason: str, entry: bytes, stream: str) -> list[bytes]:
    """A raw record as it came, within bounds, and why it is dead."""
    kept = fields[:MAX_LETTER_ITEMS]
    notes = [reason]
    if len(fields) > len(kept):
        notes.append(f"{(len(fields) - len(kept)) // 2} further fields are not kept")
    for at, value in enumerate(kept):
        if len(value) > MAX_LETTER_VALUE:
            kept[at] = value[:_CUT_TO]
            name = kept[at - at % 2][:64].decode("utf-8", "backslashreplace")
            notes.append(f"of field {name!r} the first {_CUT_TO} of {len(value)} bytes are kept")
    dead = {
        b"dead_reason": reason.encode(),
        b"dead_detail": "; ".join(notes).encode()[:16_384],
        b"dead_attempts": b"1",
        b"dead_stream": stream.encode(),
        b"dead_entry": entry,
    }
    return [*kept, *(part for note in dead.items() for part in note)]


def refusal(fields: list[bytes], *, app: str, code: str, message: str) -> tuple[str, list[bytes]] | None:
    """Whom to tell that a message was refused, and the reply's fields; None where nobody can be waiting for it."""
    given = dict(zip(fields[::2], fields[1::2], strict=False))
    message_id, source, record_type = (_text(given.get(name)) for name in (b"id", b"source", b"type"))
    addressed = b"recipient" in given and b"reply_to" not in given and b"kind" not in given
    if not (addressed and ID_RULE.fullmatch(message_id) and APP_RULE.fullmatch(source)):
        return None
    answer = f"{record_type}_response"
    data = {"status": "error", "success": False, "error_code": code, "error": message, "message": message}
    return source, [
        *(b"id", new_id().encode(), b"type", (answer if TYPE_RULE.fullmatch(answer) else "response").encode()),
        *(b"source", app.encode(), b"recipient", source.encode(), b"data", encode_json(data)),
        *(b"reply_to", message_id.encode(), b"kind", ReplyKind.ERROR.encode()),
        *(b"time", b"%d" % time.time_ns(), b"boot_id", BOOT_ID.encode(), b"mono", b"%d" % boot_clock_ns()),
    ]


def _text(value: bytes | None) -> str:
    return (value or b"")[:256].decode("ascii", "replace")
