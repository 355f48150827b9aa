"""How much of what leaves is handed to the system: little, because there nothing can be overtaken any more.

A frame that the system has taken leaves before a more urgent one. So it gets the next one only when what it holds
has nearly left: about 20 ms of a line, or the rest of one frame.
"""

from __future__ import annotations

import array
import fcntl
import socket
import termios
import time
from contextlib import suppress
from typing import Final, Protocol

_HELD_S: Final = 0.02
_NEARLY_GONE_S: Final = 0.004
_SHORTEST_S: Final = 0.001
_HELD_BYTES: Final = 1024
_OUTQNSD: Final = 0x894B  # SIOCOUTQNSD: what a socket has not sent yet


class Pace(Protocol):
    """When the system may have another frame."""

    def pause(self, size: int) -> float | None:
        """Seconds to wait before a frame of ``size`` bytes; 0: none; None: until the descriptor is writable."""

    def gave(self, size: int) -> None:
        """The system took ``size`` bytes."""


class BaudPace:
    """A line whose speed is known: a UART, or an adapter, whose own buffer tells nobody what it holds."""

    def __init__(self, descriptor: int, bytes_per_s: float) -> None:
        """The descriptor stays the caller's."""
        self._descriptor = descriptor
        self._rate = bytes_per_s
        self._empty_at = 0.0  # monotonic seconds, by the line's speed

    def pause(self, size: int) -> float:
        """By the clock, and by what the system says it still has, whichever is more."""
        now = time.monotonic()
        held = max(self._empty_at - now, unsent(self._descriptor) / self._rate)
        enough = max(_NEARLY_GONE_S, _HELD_S - size / self._rate)
        return 0.0 if held <= enough else max(_SHORTEST_S, held - enough)

    def gave(self, size: int) -> None:
        """Count it."""
        self._empty_at = max(self._empty_at, time.monotonic()) + size / self._rate


class HeldPace:
    """A port without a speed of its own, such as USB's CDC ACM: as the system says what it still has."""

    def __init__(self, descriptor: int) -> None:
        """The descriptor stays the caller's."""
        self._descriptor = descriptor

    def pause(self, size: int) -> float:  # noqa: ARG002  # any frame fits
        """A moment while there is much."""
        return 0.0 if unsent(self._descriptor) < _HELD_BYTES else _SHORTEST_S

    def gave(self, size: int) -> None:
        """Nothing to count."""


class SocketPace:
    """A TCP connection: what the other end may be sent goes at once, of the rest the system holds 1 KiB."""

    def __init__(self, sock: socket.socket) -> None:
        """The socket stays the caller's. Where the system cannot hold little, it is given all that it takes."""
        self._sock = sock
        self._count = array.array("i", [0])
        self._holds_little = False
        with suppress(OSError, AttributeError):
            # the socket then is writable only below this; a write alone is no sign, it fills the last segment up
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _HELD_BYTES)
            fcntl.ioctl(sock.fileno(), _OUTQNSD, self._count)
            self._holds_little = True

    def pause(self, size: int) -> float | None:  # noqa: ARG002  # any frame fits
        """Until the socket says so, while there is much."""
        if not self._holds_little:
            return 0.0
        try:
            fcntl.ioctl(self._sock.fileno(), _OUTQNSD, self._count)
        except OSError:
            return 0.0  # it is broken, as writing will tell
        return None if self._count[0] >= _HELD_BYTES else 0.0

    def gave(self, size: int) -> None:
        """Nothing to count."""


def unsent(descriptor: int) -> int:
    """Bytes of a serial port that the system has taken and that did not leave yet; 0 where it cannot tell."""
    count = array.array("i", [0])
    with suppress(OSError):
        fcntl.ioctl(descriptor, termios.TIOCOUTQ, count)
    return count[0]
