"""Which frame leaves next on a byte stream: urgent ones before all others, each kind in its order. Pure.

What loses its worth when it is late, and is small, is urgent: commands and their answers, setpoints, sticks,
heartbeats. All else is bulk: files, logs, parameters, missions, and what nobody here knows.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from petalbus.handlers.mavlink.wire.crc import crc, crc_with_extra, implied_extra
from petalbus.handlers.mavlink.wire.framing import MARKER_V2

URGENT_IDS: Final = frozenset(
    (
        *(0, 4, 11),  # HEARTBEAT, PING, SET_MODE
        *(69, 70),  # MANUAL_CONTROL, RC_CHANNELS_OVERRIDE
        *(75, 76, 77, 80),  # COMMAND_INT, COMMAND_LONG, COMMAND_ACK, COMMAND_CANCEL
        *(81, 82, 84, 86),  # MANUAL_SETPOINT, SET_ATTITUDE_TARGET, SET_POSITION_TARGET_LOCAL_NED, ..._GLOBAL_INT
        *(111, 139, 149),  # TIMESYNC, SET_ACTUATOR_CONTROL_TARGET, LANDING_TARGET
    )
)
"""Message ids that overtake the others."""

_LEAST_URGENT_BYTES: Final = 1024
_URGENT_SHARE: Final = 4


def is_urgent(data: bytes) -> bool:
    """Whether this whole frame (MAVLink 1 or 2) overtakes others."""
    msgid = int.from_bytes(data[7:10], "little") if data[0] == MARKER_V2 else data[5]
    return msgid in URGENT_IDS


def numbered(data: bytes, seq: int) -> bytes:
    """The whole, unsigned frame with another sequence number; one whose checksum is wrong stays as it is."""
    version_2 = data[0] == MARKER_V2
    at = 4 if version_2 else 2
    if data[at] == seq:
        return data
    end = data[1] + (10 if version_2 else 6)
    extra = implied_extra(crc(data[1:end]), int.from_bytes(data[end : end + 2], "little"))
    if extra is None:
        return data
    body = data[1:at] + bytes((seq,)) + data[at + 1 : end]
    return data[:1] + body + crc_with_extra(crc(body), extra).to_bytes(2, "little")


class Outbox:
    """Whole frames that wait, in two queues. Both are bounded, so that neither kind can crowd out the other."""

    def __init__(self, limit: int) -> None:
        """``limit``: bytes of bulk at most; a quarter of it, and no less than 1024 bytes, may be urgent."""
        self._bulk: deque[bytes] = deque()
        self._urgent: deque[bytes] = deque()
        self._room = {False: limit, True: max(_LEAST_URGENT_BYTES, limit // _URGENT_SHARE)}
        self.waiting = 0
        """Bytes."""
        self.overtaken = 0
        """How often an urgent frame left before bulk that had been there."""

    def __len__(self) -> int:
        """Frames that wait."""
        return len(self._bulk) + len(self._urgent)

    def put(self, data: bytes) -> bool:
        """Take one whole frame; False when there is no room for its kind."""
        urgent = is_urgent(data)
        if len(data) > self._room[urgent]:
            return False
        self._room[urgent] -= len(data)
        self.waiting += len(data)
        (self._urgent if urgent else self._bulk).append(data)
        return True

    def next_size(self) -> int:
        """Bytes of the frame that is the next one; 0 when none waits."""
        queue = self._urgent or self._bulk
        return len(queue[0]) if queue else 0

    def take(self) -> bytes:
        """The next frame. Raises IndexError when none waits."""
        urgent = bool(self._urgent)
        data = (self._urgent if urgent else self._bulk).popleft()
        self._room[urgent] += len(data)
        self.waiting -= len(data)
        self.overtaken += urgent and bool(self._bulk)
        return data

    def clear(self) -> None:
        """Forget all that waits."""
        while len(self):
            self.take()
