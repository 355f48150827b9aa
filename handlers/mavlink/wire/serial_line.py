"""A serial port below a link: a UART, a USB device. ``pyserial`` opens and configures it.

The event loop does the rest. A port that is not there yet, or that vanishes, is opened again when it comes back.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import termios
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import serial

from petalbus.handlers.mavlink.wire.endpoint import Endpoint
from petalbus.handlers.mavlink.wire.pace import BaudPace, HeldPace, Pace, unsent
from petalbus.handlers.mavlink.wire.transport import MAX_WAITING_BYTES, LineTransport, Opened

_LEAST_WAITING: Final = 2048
_BITS_A_BYTE: Final = 10
_NO_REAL_SPEED: Final = ("ttyACM", "ttyGS", "rfcomm")
"""USB without an adapter, at either end of it, and Bluetooth: the baud rate is only a word there."""
_HINTS: Final = {
    errno.EACCES: "may this user open it? It usually belongs to the group dialout",
    errno.EPERM: "may this user open it? It usually belongs to the group dialout",
    errno.EBUSY: "another program uses it",
    errno.EAGAIN: "another program uses it",
    errno.ENOENT: "the device is not there",
    errno.ENOTTY: "this is no serial port",
}


class SerialTransport(LineTransport):
    """A serial port with 8 data bits, no parity, 1 stop bit, no flow control; ours alone while it is open."""

    def __init__(self, endpoint: Endpoint, *, rest: float = 0.005) -> None:
        """``rest`` is the pause after each draining, in seconds; 0 for none."""
        # more than a second of the line must not wait: it would arrive when it is old
        second = endpoint.baud // _BITS_A_BYTE
        super().__init__(endpoint, rest=rest, limit=min(max(second, _LEAST_WAITING), MAX_WAITING_BYTES))
        self._port: Any = None

    async def _connect(self) -> Opened:
        attempt = _Attempt(self.endpoint)
        try:
            port = await asyncio.to_thread(attempt.open)
        except BaseException:
            attempt.give_up()
            raise
        self._port = port

        async def close() -> None:
            self._port = None
            await asyncio.to_thread(_shut, port)

        return Opened(port.fileno(), _pace(port.fileno(), self.endpoint.baud), close)

    def _unsent(self) -> int:
        """Bytes in the system's buffer."""
        with suppress(OSError, TypeError, AttributeError):  # closed meanwhile
            return unsent(self._port.fileno())
        return 0


class _Attempt:
    """Opens the port in a thread, which may take its time; a port that opens after we gave up is closed again."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self._given_up = False
        self._port: Any = None

    def open(self) -> Any:
        """The open port. Raises OSError saying what to do."""
        port = _open_port(self._endpoint)
        with self._lock:
            if not self._given_up:
                self._port = port
                return port
        _shut(port)
        raise OSError(errno.ECANCELED, "given up")

    def give_up(self) -> None:
        """Nobody wants the port any more."""
        with self._lock:
            self._given_up = True
            port, self._port = self._port, None
        if port is not None:
            _shut(port)


def _open_port(endpoint: Endpoint) -> Any:
    try:
        # timeout 0 makes it non-blocking; `exclusive` keeps other programs away that ask for the lock, too
        port = serial.Serial(endpoint.device, endpoint.baud, timeout=0, write_timeout=0, exclusive=True)
    except (OSError, ValueError, termios.error) as error:
        raise OSError(_told(error)) from None
    try:
        descriptor = port.fileno()
        fcntl.ioctl(descriptor, termios.TIOCEXCL)  # this one keeps away also those that do not ask
        settings = termios.tcgetattr(descriptor)
        # pyserial lets a read of nothing return nothing, which is also what a vanished port returns
        settings[6][termios.VMIN] = 1
        settings[6][termios.VTIME] = 0
        termios.tcsetattr(descriptor, termios.TCSANOW, settings)
    except (OSError, termios.error) as error:
        _shut(port)
        raise OSError(_told(error)) from None
    return port


def _pace(descriptor: int, baud: int) -> Pace:
    name = ""
    with suppress(OSError):
        name = Path(os.ttyname(descriptor)).name
    return HeldPace(descriptor) if name.startswith(_NO_REAL_SPEED) else BaudPace(descriptor, baud / _BITS_A_BYTE)


def _shut(port: Any) -> None:
    """Close it without waiting for bytes that do not leave (the system would, for up to 30 s)."""
    with suppress(OSError, termios.error):
        termios.tcflush(port.fileno(), termios.TCIOFLUSH)
    with suppress(OSError, termios.error):
        fcntl.ioctl(port.fileno(), termios.TIOCNXCL)
    with suppress(OSError, termios.error):
        port.close()


def _told(error: Exception) -> str:
    """What went wrong, and what may help."""
    number = getattr(error, "errno", None)
    if number is None and error.args and isinstance(error.args[0], int):
        number = error.args[0]  # termios.error is no OSError
    if isinstance(number, int) and number in _HINTS:
        return f"{os.strerror(number)}; {_HINTS[number]}"
    return str(error)
