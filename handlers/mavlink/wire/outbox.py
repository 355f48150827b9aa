"""Which frame leaves next on a byte stream: commands first, then what streams, then all others. Pure.

Commands, their answers and heartbeats come first, with room that nothing else can take. What loses its worth when it
is late is next: setpoints and sticks, of which only the newest for each vehicle waits. All else is bulk: files, logs,
parameters, missions, and what nobody here knows. TIMESYNC is bulk, too: it is asked behind a request for the list of
logs, to see that this was read, and must not overtake it.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from petalbus.handlers.mavlink.wire.crc import crc, crc_with_extra, implied_extra
from petalbus.handlers.mavlink.wire.framing import MARKER_V2

COMMAND_IDS: Final = frozenset(
    (
        *(0, 11),  # HEARTBEAT, SET_MODE
        *(75, 76, 77, 80),  # COMMAND_INT, COMMAND_LONG, COMMAND_ACK, COMMAND_CANCEL
    )
)
"""Message ids that overtake everything."""

_TARGETS: Final = {
    69: 10,
    70: 16,  # MANUAL_CONTROL, RC_CHANNELS_OVERRIDE
    82: 36,
    84: 50,
    86: 50,  # SET_ATTITUDE_TARGET, SET_POSITION_TARGET_LOCAL_NED, ..._GLOBAL_INT
    139: 41,  # SET_ACTUATOR_CONTROL_TARGET
}
"""Where in the payload of a stream's message its target system stands."""

STREAM_IDS: Final = frozenset((4, 81, 149, *_TARGETS))  # PING, MANUAL_SETPOINT, LANDING_TARGET
"""Message ids that overtake bulk."""

URGENT_IDS: Final = COMMAND_IDS | STREAM_IDS
"""All that overtakes something."""

_LEAST_URGENT_BYTES: Final = 1024
_URGENT_SHARE: Final = 4


def _head(data: bytes) -> tuple[int, int]:
    """Message id, and where the payload begins."""
    return (int.from_bytes(data[7:10], "little"), 10) if data[0] == MARKER_V2 else (data[5], 6)


def is_urgent(data: bytes) -> bool:
    """Whether this whole frame (MAVLink 1 or 2) overtakes others."""
    return _head(data)[0] in URGENT_IDS


def _stream_of(data: bytes) -> tuple[int, int] | None:
    """What a newer frame replaces this one by: message id and target system; None where it replaces none."""
    msgid, start = _head(data)
    at = _TARGETS.get(msgid)
    if at is None:
        return None
    return msgid, data[start + at] if data[1] > at else 0


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
    """Whole frames that wait, in three queues. Each is bounded, so that no kind can crowd out another."""

    def __init__(self, limit: int) -> None:
        """``limit``: bytes of bulk at most; a quarter of it, and no less than 1024 bytes, may be each other kind."""
        self._commands: deque[bytes] = deque()
        self._streams: deque[bytes] = deque()
        self._bulk: deque[bytes] = deque()
        self._queues = (self._commands, self._streams, self._bulk)
        urgent = max(_LEAST_URGENT_BYTES, limit // _URGENT_SHARE)
        self._room = [urgent, urgent, limit]
        self.waiting = 0
        """Bytes."""
        self.overtaken = 0
        """How often a frame left before bulk that had been there."""
        self.superseded = 0
        """Setpoints and sticks that gave way to newer ones."""

    def __len__(self) -> int:
        """Frames that wait."""
        return sum(map(len, self._queues))

    def put(self, data: bytes) -> bool:
        """Take one whole frame; False when there is no room for its kind."""
        msgid, _ = _head(data)
        kind = 0 if msgid in COMMAND_IDS else 1 if msgid in STREAM_IDS else 2
        if kind == 1:
            self._supersede(data)
        if len(data) > self._room[kind]:
            return False
        self._room[kind] -= len(data)
        self.waiting += len(data)
        self._queues[kind].append(data)
        return True

    def _supersede(self, data: bytes) -> None:
        stream = _stream_of(data)
        if stream is None:
            return
        for place, other in enumerate(self._streams):
            if _stream_of(other) == stream:
                del self._streams[place]
                self._room[1] += len(other)
                self.waiting -= len(other)
                self.superseded += 1
                return

    def next_size(self) -> int:
        """Bytes of the frame that is the next one; 0 when none waits."""
        return next((len(queue[0]) for queue in self._queues if queue), 0)

    def take(self) -> bytes:
        """The next frame. Raises IndexError when none waits."""
        kind = next((kind for kind, queue in enumerate(self._queues) if queue), 2)
        data = self._queues[kind].popleft()
        self._room[kind] += len(data)
        self.waiting -= len(data)
        self.overtaken += kind < 2 and bool(self._bulk)
        return data

    def clear(self) -> None:
        """Forget all that waits."""
        while len(self):
            self.take()
