"""Look into a record of topic ``mavlink.rx``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from petalbus.handlers.mavlink.wire.dialect import DEFAULT_DIALECT, Dialect, load_dialect
from petalbus.handlers.mavlink.wire.framing import Frame

if TYPE_CHECKING:
    from petalbus.schemas.record import Record

CONTENT_TYPE: Final = "application/x-mavlink"
"""The payload is one whole MAVLink frame, as it was received."""


def frame_of(record: Record) -> Frame:
    """The frame in a record. Raises TypeError or ValueError when the record holds none."""
    data = record.data
    if not isinstance(data, bytes):
        raise TypeError(f"record {record.id} of type {record.type!r} holds no MAVLink frame, but {type(data).__name__}")
    return Frame.from_raw(data)


def decode(record: Record, *, dialect: str | Dialect = DEFAULT_DIALECT, json_safe: bool = True) -> dict[str, Any]:
    """The message in a record: ``mavpackettype``, ``header`` (system, component, seq, ...), the fields by name.

    NaN and infinities become None unless ``json_safe`` is False. Raises TypeError or ValueError when the
    record holds no frame.
    """
    chosen = load_dialect(dialect) if isinstance(dialect, str) else dialect
    return chosen.decode(frame_of(record), json_safe=json_safe)
