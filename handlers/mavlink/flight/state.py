"""What is known of a vehicle: what its heartbeats and a few other messages say."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from petalbus.handlers.mavlink.wire.framing import Frame

_ARMED_FLAG: Final = 128


class Autopilot(IntEnum):
    """MAV_AUTOPILOT, where it makes a difference."""

    ARDUPILOT = 3
    PX4 = 12


@dataclass(slots=True)
class VehicleState:
    """What the heartbeats say. ``heard`` is monotonic seconds."""

    system: int
    autopilot: int
    kind: int
    base_mode: int
    custom_mode: int
    heard: float
    told_armed: bool = False
    """What the last heartbeat itself said, whatever an acknowledgement said since."""
    disarmed_at: float = 0.0
    """When a heartbeat itself said last that it is disarmed, monotonic seconds."""
    status: int = 0
    """MAV_STATE."""
    quiet: float = 0.0
    """The longest time without a heartbeat, seconds, since somebody set it to 0."""
    landed_state: int = 0
    landed_at: float = 0.0
    """When that was told, monotonic seconds."""
    outside_fence_at: float = 0.0
    """When PX4 told last that it does not go to a place because of its geofence, monotonic seconds."""
    position: Frame | None = None
    """The last GLOBAL_POSITION_INT."""
    position_at: float = 0.0
    """When it came, monotonic seconds."""
    capabilities: int | None = None
    """MAV_PROTOCOL_CAPABILITY bits, once it told its AUTOPILOT_VERSION."""

    @property
    def armed(self) -> bool:
        """True while the motors may turn."""
        return bool(self.base_mode & _ARMED_FLAG)

    def believe_armed(self, *, armed: bool) -> None:
        """What an acknowledgement says already, up to a second before the next heartbeat does."""
        self.base_mode = self.base_mode | _ARMED_FLAG if armed else self.base_mode & ~_ARMED_FLAG
