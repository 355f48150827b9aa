"""One FTP conversation with a vehicle: requests with repetitions, the session, and what is kept between conversations.

A request is repeated with the SAME number: a server answers that again without doing it twice. PX4 compares nothing but
the number, even across clients, so an answer to another command under our number means that our request was taken for
a repetition and was not done: then it gets a new number.

ArduPilot does one thing after the other: while a burst leaves, which may take minutes on a radio, five requests wait
and further ones are lost. So packets of a burst are a sign of life, and nothing is repeated while they come.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Final

from petalbus.handlers.mavlink.errors import NotConnected
from petalbus.handlers.mavlink.files.ftp_peer import FtpPeer, FtpTimes
from petalbus.handlers.mavlink.files.ftp_wire import (
    FTP_ID,
    FtpError,
    FtpNak,
    FtpPacket,
    FtpRefused,
    Opcode,
    pack_packet,
    path_bytes,
    unpack_packet,
    unpack_u32,
)
from petalbus.handlers.mavlink.wire.calls import Calls, Inbox
from petalbus.handlers.mavlink.wire.framing import Frame

log = logging.getLogger(__name__)

__all__ = ["FtpBusy", "FtpPeer", "FtpTimeout", "FtpTimes", "Talk", "settled"]

_REST_AFTER_FAILED_SEND_S: Final = 0.05
_EAGER: Final = 3
_FIRST_S: Final = 0.2
"""How long to wait for an answer while nobody knows how long one takes."""

_YIELD_AFTER: Final = 64
_GONE: Final = (FtpNak.INVALID_SESSION, FtpNak.NO_SESSIONS_AVAILABLE)
_STREAMING_S: Final = 0.3


class FtpTimeout(FtpError):
    """No answer came any more. ``done`` of ``total`` bytes were through (None: not known)."""

    code = "FTP_TIMEOUT"

    def __init__(self, message: str, *, done: int = 0, total: int | None = None) -> None:
        self.done = done
        self.total = total
        super().__init__(message)

    @property
    def detail(self) -> dict[str, int | None]:
        """How far it came, in bytes."""
        return {"done": self.done, "total": self.total}


class FtpBusy(FtpError):
    """Other transfers with this vehicle did not end in the time allowed. Nothing was sent."""

    code = "FTP_BUSY"


@dataclass(slots=True)
class _Flight:
    """One request under way."""

    request: FtpPacket
    sent_at: float
    begun_at: float
    sends: int = 0
    hurry: bool = False
    hurried_at: float | None = None
    crossed: bool = False


Take = Callable[[FtpPacket, FtpPacket, int], None]
"""Gets a request, its answer (an acknowledgement or a refusal), and how often the request left."""


class Talk:
    """One conversation; only one may go on with a vehicle at a time. ``inbox`` listens to FILE_TRANSFER_PROTOCOL."""

    def __init__(self, calls: Calls, inbox: Inbox, peer: FtpPeer, times: FtpTimes) -> None:
        self.peer = peer
        self.times = times
        self._calls = calls
        self._inbox = inbox
        self._hold_until = 0.0
        self._open: int | None = None
        self._burst_at = float("-inf")
        self._streaming_at = float("-inf")

    # -- packets ------------------------------------------------------------------------------------------------------

    def send(self, packet: FtpPacket) -> bool:
        """Send; False when the link did not take it (nobody is there, or its buffer is full): then rest a little."""
        try:
            self._calls.send_payload(FTP_ID, pack_packet(packet, system=self.peer.system), self.peer.system)
        except NotConnected:
            self._hold_until = time.monotonic() + _REST_AFTER_FAILED_SEND_S
            return False
        return True

    def take(self) -> FtpPacket | None:
        """The next answer that is here already and is meant for us."""
        while (frame := self._inbox.take()) is not None:
            if (packet := self._read(frame)) is not None:
                return packet
        return None

    def _read(self, frame: Frame) -> FtpPacket | None:
        unpacked = unpack_packet(frame.payload)
        if unpacked is None or not self._calls.is_for_us(*unpacked[1:]):
            return None
        packet = unpacked[0]
        if packet.req_opcode == Opcode.BURST_READ_FILE:
            self._burst_at = time.monotonic()
            more = packet.opcode == Opcode.ACK and not packet.burst_complete
            self._streaming_at = self._burst_at if more else float("-inf")
        return packet

    async def receive(self, seconds: float) -> FtpPacket | None:
        """The next answer; None when none comes within ``seconds``."""
        until = time.monotonic() + seconds
        while (packet := self.take()) is None:
            left = until - time.monotonic()
            if left <= 0:
                return None
            frame = await self._inbox.get(left)
            if frame is not None and (packet := self._read(frame)) is not None:
                break
        return packet

    # -- requests -----------------------------------------------------------------------------------------------------

    async def need_free(self, what: str, seconds: float = 0.0) -> None:
        """Make sure that ArduPilot is not at a burst: what it is asked then it may do minutes later.

        Raises FtpBusy when it goes on for ``seconds`` (0: as long as silence may last), FtpTimeout for mere silence.
        """
        if not self.peer.is_ardupilot:
            return
        try:
            await self.ask(Opcode.NONE, what, silence=seconds, busy=0.0)
        except FtpRefused:
            return  # an answer, too
        except FtpTimeout:
            if time.monotonic() - self._streaming_at > self.times.silence:
                raise
            raise FtpBusy(
                f"{what}: the vehicle still sends the rest of a cancelled file; nothing was sent. Try again when it is "
                "over, which may take minutes on a slow line"
            ) from None

    async def ask(
        self,
        opcode: Opcode,
        what: str,
        *,
        session: int | None = None,
        offset: int = 0,
        data: bytes = b"",
        silence: float = 0.0,
        busy: float | None = None,
    ) -> FtpPacket:
        """One request; its acknowledgement. ``what`` says in words what is asked for. ``session`` None: ours.

        Raises FtpRefused, and FtpTimeout when nothing comes for ``silence`` seconds (0: as usual), ``busy`` seconds
        while packets of a burst come (None: as usual).
        """
        answers: list[tuple[FtpPacket, int]] = []
        request = FtpPacket(0, opcode, self.peer.session if session is None else session, offset, data)
        take: Take = lambda _, answer, sends: answers.append((answer, sends))  # noqa: E731  # nothing but that
        await self.ask_all([request], take, what, silence=silence, busy=busy)
        answer, sends = answers[0]
        if answer.nak is not None:
            raise FtpRefused(what, *answer.nak, sends=sends)
        return answer

    async def ask_all(
        self,
        requests: Iterable[FtpPacket],
        take: Take,
        what: str,
        *,
        window: int = 1,
        silence: float = 0.0,
        busy: float | None = None,
    ) -> None:
        """Ask them all, ``window`` in flight, and hand every answer to ``take``, which may raise. They get numbers.

        Raises FtpTimeout when none is answered for ``silence`` seconds, ``busy`` seconds while a burst goes on.
        """
        waiting = iter(requests)
        flying: dict[int, _Flight] = {}
        silence = silence or self.times.silence
        busy = self.times.busy if busy is None else busy
        heard = time.monotonic()
        more = True
        while True:
            now = time.monotonic()
            while more and len(flying) < window and now >= self._hold_until:
                request = next(waiting, None)
                if request is None:
                    more = False
                    break
                request = request._replace(seq=self.peer.next_seq())
                self._launch(flying, _Flight(request, now, now), now)
            if not flying and not more:
                return
            lively = max(heard, min(self._burst_at, heard + busy))
            if now - lively >= silence:
                waited = silence if lively == heard else round(now - heard)  # it was at a burst for so long
                raise FtpTimeout(f"{what}: the vehicle did not answer for {waited:g} s")
            due = self._send_due(flying, now)
            packet = await self.receive(max(0.0, min(due, lively + silence) - time.monotonic()))
            for _ in range(_YIELD_AFTER):
                if packet is None:
                    break
                if self._answered(flying, packet, take):
                    heard = time.monotonic()
                packet = self.take()
            else:
                await asyncio.sleep(0)

    def _launch(self, flying: dict[int, _Flight], flight: _Flight, now: float) -> None:
        flying[flight.request.seq] = flight
        flight.sent_at = now
        flight.hurry = False
        flight.sends += self.send(flight.request)

    def _send_due(self, flying: dict[int, _Flight], now: float) -> float:
        """Repeat what is due; when the next one is."""
        soonest = float("inf")
        held = max(self._hold_until, self._streaming_at + _STREAMING_S if self.peer.is_ardupilot else 0.0)
        for flight in list(flying.values()):
            due = self._due(flight)
            if now >= due and now >= held:
                if flight.crossed:
                    del flying[flight.request.seq]
                    flight.request = flight.request._replace(seq=self.peer.next_seq(skip=1000))
                    flight.crossed = False
                self._launch(flying, flight, now)
                due = self._due(flight)
            soonest = min(soonest, max(due, held))
        return soonest

    def _due(self, flight: _Flight) -> float:
        if flight.hurry:
            return float("-inf")
        trip = self.peer.trip
        patience = trip.patience(self.times.resend if trip.known else min(_FIRST_S, self.times.resend))
        return flight.sent_at + min(self.times.resend, patience * 1.5 ** min(max(0, flight.sends - _EAGER), 20))

    def _answered(self, flying: dict[int, _Flight], packet: FtpPacket, take: Take) -> bool:
        """Whether the packet answers one of the requests."""
        seq = (packet.seq - 1) & 0xFFFF
        flight = flying.get(seq)
        if flight is None or packet.opcode not in (Opcode.ACK, Opcode.NAK):
            return False
        if packet.req_opcode != flight.request.opcode:
            flight.crossed = True
            return False
        del flying[seq]
        now = time.monotonic()
        trip = self.peer.trip
        if flight.sends == 1:
            trip.sample(now - flight.sent_at)
        else:
            trip.guess(now - flight.begun_at)
        if flight.hurried_at is not None and trip.smooth is not None and now - flight.hurried_at < trip.smooth / 2:
            self.peer.reordered = True  # too early for an answer to the repetition: the request was only late
        if flight.sends == 1 and not self.peer.reordered:
            for other in flying.values():  # whoever was asked before it and is not answered yet: it got lost
                if not other.hurry and other.sent_at < flight.sent_at:
                    other.hurry = True
                    other.hurried_at = now
        take(flight.request, packet, flight.sends)
        return True

    # -- the session --------------------------------------------------------------------------------------------------

    async def open(self, opcode: Opcode, path: str) -> tuple[int, int]:
        """Open a file; the session, and the size that is told (0 for a file that is written).

        A session that an earlier run of ours left behind is closed first, where one is in the way. Raises FtpRefused.
        """
        peer, data = self.peer, path_bytes(path)
        self._open = peer.session
        try:
            try:
                answer = await self.ask(opcode, f"open {path}", data=data)
            except FtpRefused as refused:
                if not self._is_stale(refused.error) or not (peer.unsure or refused.sends > 1):
                    raise
                log.info("system %d has a stale FTP session; resetting them", peer.system)
                await self.ask(Opcode.RESET_SESSIONS, "reset the sessions")
                answer = await self.ask(opcode, f"open {path}", data=data)
        except FtpRefused:
            self._open = None
            raise
        self._open = answer.session
        peer.unsure = True
        return answer.session, unpack_u32(answer.data) if len(answer.data) >= 4 else 0

    def _is_stale(self, error: int) -> bool:
        """Whether a refusal to open may mean that a session is open already.

        PX4 says that the file exists, whatever it refuses, while that is the last that its file system complained of;
        it never means it, for it writes over a file that is there.
        """
        if self.peer.is_ardupilot and error == FtpNak.FAIL:
            return True
        return error in _GONE or (self.peer.is_px4 and error == FtpNak.FILE_EXISTS)

    async def close(self) -> None:
        """Close what may be open. Never raises for what the vehicle does: the next opening sets it right.

        A vehicle in the midst of a burst has it in its queue, and may do it long after we have gone: nobody waits.
        """
        if self._open is None:
            return
        try:
            await self.ask(Opcode.TERMINATE_SESSION, "close", session=self._open, silence=self.times.close, busy=0.0)
        except FtpRefused:
            pass  # it is closed already
        except FtpTimeout:
            self.peer.unsure = True
            log.warning("system %d did not acknowledge the end of an FTP session", self.peer.system)
            return
        finally:
            self._open = None
        self.peer.unsure = False


async def settled(work: Coroutine[Any, Any, None]) -> None:
    """Do bounded work to its end, also while the caller is being cancelled; the cancellation follows."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            cancelled = error
    if cancelled is not None:
        if task.exception() is not None:
            log.error("a clean-up failed while it was cancelled", exc_info=task.exception())
        raise cancelled
    task.result()
