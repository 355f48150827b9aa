"""One open byte stream below a link: a socket or a serial port in the event loop."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from petalbus.handlers.mavlink.wire.outbox import Outbox
from petalbus.handlers.mavlink.wire.pace import Pace

if TYPE_CHECKING:
    from petalbus.handlers.mavlink.wire.transport import Address, Receiver

log = logging.getLogger(__name__)

_READ_BYTES: Final = 64 * 1024
_MAX_DRAIN: Final = 256 * 1024


class Line:
    """A non-blocking file descriptor that carries frames. It does not close the descriptor.

    It reads everything that is there, then rests, as UDP does. Frames wait here, urgent ones apart, and the system
    is given only little at a time: the next urgent frame leaves as soon as the one that is on its way has left.
    """

    def __init__(
        self,
        descriptor: int,
        address: Address,
        receiver: Receiver,
        *,
        pace: Pace,
        rest: float,
        on_end: Callable[[str], None],
        limit: int,
        end_when_full: bool = False,
    ) -> None:
        """Begin to read. ``on_end`` is called once, with the reason, when the other end is gone, not by ``send``.

        ``limit`` is what bulk may wait, in bytes. A frame that has no room is dropped, or ends the line
        (``end_when_full``).
        """
        self.address = address
        self.heard = 0
        """Bytes received."""
        self.dropped = 0
        """Frames that did not leave."""
        self._descriptor = descriptor
        self._receiver = receiver
        self._pace = pace
        self._rest = rest
        self._on_end = on_end
        self._end_when_full = end_when_full
        self._loop = asyncio.get_running_loop()
        self._outbox = Outbox(limit)
        self._leaving = b""  # the rest of the frame of which the system took a part
        self._timer: asyncio.TimerHandle | None = None
        self._later: asyncio.TimerHandle | None = None
        self._writing = False  # the loop tells when the descriptor is writable
        self._open = True
        self._loop.add_reader(descriptor, self._readable)

    @property
    def open(self) -> bool:
        """False as soon as it is known that nothing can be sent any more."""
        return self._open

    @property
    def waiting(self) -> int:
        """Bytes that wait."""
        return self._outbox.waiting + len(self._leaving)

    @property
    def overtaken(self) -> int:
        """How often an urgent frame left before bulk that had waited longer."""
        return self._outbox.overtaken

    def send(self, data: bytes) -> bool:
        """Send one whole frame, now or when its turn comes; False when it was dropped."""
        if not self._open:
            self.dropped += 1
            return False
        if not self._outbox.put(data):
            self.dropped += 1
            if self._end_when_full:
                self._fail("it does not read")
            return False
        if self._later is None and not self._writing:
            self._pump()
        return self._open

    def stop(self) -> None:
        """Leave the event loop; what waits counts as dropped. Call it before the descriptor is closed."""
        if self._descriptor < 0:
            return
        self._open = False
        for timer in (self._timer, self._later):
            if timer is not None:
                timer.cancel()
        self._loop.remove_reader(self._descriptor)
        self._loop.remove_writer(self._descriptor)
        self._descriptor = -1
        self.dropped += len(self._outbox) + bool(self._leaving)
        self._outbox.clear()
        self._leaving = b""

    def _pump(self) -> None:
        """Give the system what it shall have by now, and come back for the rest."""
        self._later = None
        wait_for_room = False
        while self._open and not wait_for_room and (self._leaving or len(self._outbox)):
            if not self._leaving:
                pause = self._pace.pause(self._outbox.next_size())
                if pause:
                    self._later = self._loop.call_later(pause, self._pump)
                    break
                if pause is None:
                    wait_for_room = True
                    break
                self._leaving = self._sealed(self._outbox.take())
            written = self._write(self._leaving)
            self._pace.gave(written)
            self._leaving = self._leaving[written:]
            wait_for_room = bool(self._leaving)
        self._watch(wait_for_room and self._open)

    def _watch(self, wanted: bool) -> None:  # noqa: FBT001  # what it shall be
        if wanted and not self._writing:
            self._loop.add_writer(self._descriptor, self._pump)
        elif self._writing and not wanted and self._descriptor >= 0:
            self._loop.remove_writer(self._descriptor)
        self._writing = wanted

    def _sealed(self, data: bytes) -> bytes:
        try:
            return self._receiver.leaving(data, self.address)
        except Exception:  # a fault of ours further up: the line must go on
            log.exception("a frame for %s could not be made ready and was dropped", self.address)
            self.dropped += 1
            return b""

    def _write(self, data: bytes) -> int:
        """How much the system took."""
        try:
            return os.write(self._descriptor, data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            self._fail(error.strerror or str(error))
            return 0

    def _readable(self) -> None:
        self._timer = None
        reason, end = None, self.heard + _MAX_DRAIN
        while reason is None and self._descriptor >= 0 and self.heard < end:
            try:
                data = os.read(self._descriptor, _READ_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                reason = error.strerror or str(error)
                break
            if data:
                self.heard += len(data)
                self._receiver.received(data, self.address)
            else:
                reason = "the other end closed it"
        self._receiver.drained()
        if reason is not None:
            self._end(reason)
        elif self._rest > 0 and self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            self._timer = self._loop.call_later(self._rest, self._resume)

    def _resume(self) -> None:
        self._timer = None
        if self._descriptor >= 0:
            self._loop.add_reader(self._descriptor, self._readable)

    def _fail(self, reason: str) -> None:
        """Nothing can be sent any more; tell it later, because whoever sends just now is no place for it."""
        if self._open:
            self._open = False
            self._loop.call_soon(self._end, reason)

    def _end(self, reason: str) -> None:
        if self._descriptor >= 0:
            self.stop()
            self._receiver.closed(self.address)
            self._on_end(reason)
