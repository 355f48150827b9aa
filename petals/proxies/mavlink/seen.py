"""What this process knows of the vehicle, from the records of topic ``vehicle.state``."""

from __future__ import annotations

import logging
from typing import Any, Final

from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.record import Record
from petalbus.schemas.stamps import BOOT_ID, boot_clock_ns

log = logging.getLogger(__name__)

LOST_AFTER_S: Final = 10.0
"""Without a heartbeat for so long (monotonic) the connection counts as lost."""


class VehicleSeen:
    """The last thing that was told of the vehicle. Times are monotonic seconds."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}
        self.heard_at: float | None = None

    def take(self, fields: list[bytes], *, now: float, old: bool) -> None:
        """Read a record; one about another vehicle than the primary one is passed by. ``old``: it was there before we
        listened; one of another boot then says nothing.
        """
        try:
            record = Record.from_fields(fields)
        except RecordInvalid as error:
            log.warning("a record of topic vehicle.state cannot be read: %s", error)
            return
        state = record.data
        if not isinstance(state, dict) or state.get("primary") is False:
            return
        age = 0.0
        if record.mono is not None and record.boot_id == BOOT_ID:
            age = max(0.0, (boot_clock_ns() - record.mono) / 1e9)
        elif old:
            return
        self.state = state
        heard = state.get("heard_s")
        self.heard_at = now - age - heard if isinstance(heard, int | float) else None

    def silent_for(self, now: float) -> float:
        """Seconds since its last heartbeat; infinite when there is none."""
        return float("inf") if self.heard_at is None else now - self.heard_at

    @property
    def system(self) -> int:
        """Its MAVLink system id; 1 while nothing is known."""
        return int(self.state.get("system") or 1)

    @property
    def encoding(self) -> str | None:
        """How it sends integer parameters: ``bytewise``, ``c_cast``, or None while nobody knows."""
        return self.state.get("encoding")
