"""Reading one open file: bursts, the gaps that loss leaves in them, and where the file ends.

A burst is one request and many packets, as many as the vehicle likes; only one is under way at a time. What is missing
of it is read piece by piece, several requests in flight, before the next burst begins. So what waits for a gap to be
filled is never more than a burst, and of that no more than four megabytes.

ArduPilot reads no requests while a burst leaves, and would send it once more for each copy of its request. It is asked
once: when it is quiet then, a single piece is asked for, and the answer tells that the burst is over, or never began.
PX4 forgets a file ten seconds after the last request, also in the midst of a burst: there requests go along.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Final

from petalbus.handlers.mavlink.files.ftp_pieces import Pieces
from petalbus.handlers.mavlink.files.ftp_talk import FtpTimeout, Talk, settled
from petalbus.handlers.mavlink.files.ftp_wire import MOST_DATA, FtpNak, FtpPacket, FtpRefused, Opcode
from petalbus.handlers.mavlink.params.round_trip import RoundTrip

__all__ = ["TELL_EVERY_S", "Delivery", "Keep", "Pieces", "Reader", "Tell"]

TELL_EVERY_S: Final = 0.2
_MOST_HELD: Final = 4 << 20
_BATCH: Final = 128
_BLOCK: Final = 64 << 10
_QUIET: Final = 0.1, 1.0
_STALLED_REST_S: Final = 0.05
_SEQS: Final = 1 << 16
_MOST_SKIPPED: Final = 4096
_LEAST_STRIDE: Final = 80
_MOST_PATIENCE_S: Final = 2.0
_BURSTS_KNOWN: Final = 4
_RATED: Final = 8


Keep = Callable[[bytes, int], Awaitable[None]]
"""Gets bytes in their order, and the file's size."""

Tell = Callable[[int, int], Awaitable[None]]
"""Gets the bytes that are through and the bytes in all, at most five times a second and once at the end."""


class Delivery:
    """Passes on what is ready, in blocks, and tells how far it is. ``at``: all before it was passed on."""

    def __init__(self, start: int, keep: Keep, tell: Tell | None) -> None:
        self.at = start
        self.pieces = Pieces(start, start)
        self._keep = keep
        self._tell = tell
        self._told = float("-inf")
        self._broken = False

    async def settle(self) -> None:
        """Pass on what makes a block; tell when it is time."""
        if self.pieces.next - self.at >= _BLOCK:
            await self.pass_on()
        if time.monotonic() - self._told >= TELL_EVERY_S:
            await self.tell_now()

    async def pass_on(self) -> None:
        """Pass on all that is ready, also while being cancelled; nothing more once that failed."""
        data = self.pieces.take()
        if data and not self._broken:
            self._broken = True
            await settled(self._passed(data))

    async def _passed(self, data: bytes) -> None:
        await self._keep(data, self.pieces.end)
        self.at += len(data)
        self._broken = False

    async def tell_now(self) -> None:
        """Tell how far it is."""
        self._told = time.monotonic()
        if self._tell is not None:
            await self._tell(self.pieces.next, self.pieces.end)


@dataclass(slots=True)
class _Flow:
    """A burst under way. Times are monotonic seconds."""

    request: FtpPacket
    heard: float
    """The latest packet of it; of an older one, too."""
    grown: float
    """The latest new byte."""
    sent: float = float("-inf")
    """Our latest request."""
    sends: int = 0
    flowing: bool = False
    over: bool = False
    probe: FtpPacket | None = None
    """The single piece that ArduPilot is asked for."""
    probes: int = 0
    began: float = 0.0
    """The first packet."""
    packets: int = 0


class Reader:
    """Reads an open session into pieces. ``settle`` is awaited between batches: it takes what is ready."""

    def __init__(
        self,
        talk: Talk,
        session: int,
        pieces: Pieces,
        *,
        what: str,
        settle: Callable[[], Awaitable[None]],
        bursts: bool = True,
    ) -> None:
        """``what`` says in words what is done; without ``bursts`` it is read piece by piece."""
        self._talk = talk
        self._session = session
        self._pieces = pieces
        self._what = what
        self._settle = settle
        self._bursts = bursts
        self._stride: int | None = None
        self._gaps = RoundTrip()
        self._earlier: deque[FtpPacket] = deque(maxlen=_BURSTS_KNOWN)
        self._ended_at: int | None = None
        self._progress = time.monotonic()

    async def run(self) -> None:
        """Read until nothing is missing. Raises FtpRefused, FtpTimeout (with how far it came)."""
        pieces = self._pieces
        while not pieces.complete:
            before = pieces.got
            try:
                if self._bursts and self._ended_at != pieces.next:
                    await self._burst()
                await self._read(self._missing())
                if pieces.got == before and not pieces.complete:
                    # an end that a burst tells, and silence, are put to the proof
                    self._stride = None
                    await self._read(self._steps(pieces.next, pieces.next + self._talk.peer.window * MOST_DATA))
            except FtpTimeout as timeout:
                raise self._timed_out(str(timeout)) from None
            await self._settle()
            if pieces.got != before:
                self._progress = time.monotonic()
            elif not pieces.complete:
                if time.monotonic() - self._progress > self._talk.times.silence:
                    raise self._timed_out(f"{self._what}: no new byte for {self._talk.times.silence:g} s")
                await asyncio.sleep(_STALLED_REST_S)

    def _timed_out(self, why: str) -> FtpTimeout:
        done, total = self._pieces.next, self._pieces.end
        return FtpTimeout(f"{why}; {done} of {total} bytes are here", done=done, total=total)

    # -- single pieces ------------------------------------------------------------------------------------------------

    def _missing(self) -> list[int]:
        """Where to read: the gaps, or the next stretch where the vehicle knows no bursts."""
        pieces = self._pieces
        if not self._bursts:
            return list(self._steps(pieces.next, pieces.next + _BLOCK))
        return [at for start, stop in pieces.holes() for at in self._steps(start, stop)]

    def _steps(self, start: int, stop: int) -> Iterator[int]:
        yield from range(start, min(stop, self._pieces.end), self._stride or MOST_DATA)

    async def _read(self, offsets: list[int] | Iterator[int]) -> None:
        """Read the pieces at these places; always the whole size: a generated file must be read evenly."""
        asked = (FtpPacket(0, Opcode.READ_FILE, self._session, at, size=MOST_DATA) for at in offsets)
        await self._talk.ask_all(asked, self._take, self._what, window=self._talk.peer.window)

    def _take(self, request: FtpPacket, answer: FtpPacket, sends: int) -> None:
        nak = answer.nak
        if nak is not None and nak[0] != FtpNak.END_OF_FILE:
            raise FtpRefused(self._what, *nak, sends=sends)
        if nak is not None or not answer.data:
            self._pieces.finish(request.offset)
        elif answer.offset == request.offset:
            self._pieces.put(request.offset, answer.data)

    # -- bursts -------------------------------------------------------------------------------------------------------

    async def _burst(self) -> None:
        """Ask for one burst from where we are; returns when it is over, or has gone silent."""
        peer, pieces = self._talk.peer, self._pieces
        request = FtpPacket(peer.next_seq(), Opcode.BURST_READ_FILE, self._session, pieces.next, size=MOST_DATA)
        # the numbers of its packets stay free: the rest of it may still come when something else is asked
        peer.next_seq(skip=min(_MOST_SKIPPED, (pieces.end - pieces.next) // (self._stride or _LEAST_STRIDE) + 2))
        now = time.monotonic()
        flow = _Flow(request, now, now)
        try:
            while not flow.over:
                due = self._burst_due(flow)
                now = time.monotonic()
                if now >= due:
                    if flow.flowing and not peer.is_ardupilot:
                        return
                    self._ask_burst(flow, now)
                    continue
                packet = await self._talk.receive(due - now)
                if packet is not None:
                    await self._take_burst(flow, packet)
                self._keep_alive(flow)
                await asyncio.sleep(0)
        finally:
            self._earlier.append(request)
            if flow.packets >= _RATED and flow.heard > flow.began:
                peer.rate = (flow.packets - 1) / (flow.heard - flow.began)

    def _burst_due(self, flow: _Flow) -> float:
        """When to ask (again) if nothing comes until then, or to leave a burst that has gone silent."""
        times, peer = self._talk.times, self._talk.peer
        if time.monotonic() - flow.grown > times.busy:
            raise FtpTimeout(f"{self._what}: no new byte for {times.busy:g} s")
        if flow.flowing:
            quiet = min(_QUIET[1], max(_QUIET[0], 2 * self._gaps.patience(_QUIET[1] / 2)))
            if not peer.is_ardupilot:
                return flow.heard + quiet
        else:
            quiet = max(0.1, peer.trip.patience(times.resend)) * 1.5 ** min(max(0, flow.sends - 1), 20)
            quiet = min(times.resend, quiet)
        if time.monotonic() - flow.heard > times.silence:
            raise FtpTimeout(f"{self._what}: the vehicle did not answer for {times.silence:g} s")
        if flow.probes:
            quiet = min(_MOST_PATIENCE_S, quiet * 1.5**flow.probes)
        return max(flow.heard, flow.sent) + quiet if flow.sends else flow.sent + _STALLED_REST_S

    def _ask_burst(self, flow: _Flow, now: float) -> None:
        """Ask for the burst, or ArduPilot whether it is free again."""
        talk, peer = self._talk, self._talk.peer
        flow.sent = now
        if not (flow.sends and peer.is_ardupilot):
            flow.sends += talk.send(flow.request)
            return
        if flow.probe is None:
            number = peer.next_seq()
            flow.probe = FtpPacket(number, Opcode.READ_FILE, self._session, self._pieces.next, size=MOST_DATA)
        flow.probes += 1
        talk.send(flow.probe)

    def _keep_alive(self, flow: _Flow) -> None:
        """PX4 closes a file that nobody has asked for anything."""
        talk, now = self._talk, time.monotonic()
        if talk.peer.is_px4 and flow.flowing and now - flow.sent >= talk.times.alive:
            flow.sent = now
            talk.send(FtpPacket(talk.peer.next_seq(), Opcode.NONE, self._session))

    async def _take_burst(self, flow: _Flow, packet: FtpPacket | None) -> None:
        """Take a packet, and those that are here with it."""
        talk, pieces = self._talk, self._pieces
        before, fitting = pieces.got, 0
        while packet is not None and not flow.over:
            probe = flow.probe
            if probe is not None and packet.req_opcode == probe.opcode and packet.seq == (probe.seq + 1) & 0xFFFF:
                flow.over = True
                self._take(probe, packet, flow.probes)
                break
            fits, flow.over = self._burst_packet(flow.request, packet)
            fitting += fits
            packet = talk.take() if fitting < _BATCH and not flow.over else None
        now = time.monotonic()
        if pieces.got > before:
            flow.grown = now
        if fitting:
            if flow.flowing:
                self._gaps.sample(now - flow.heard)
            else:
                flow.began = now
            flow.heard, flow.flowing = now, True
            flow.packets += fitting
            flow.probes = 0
            flow.over = flow.over or pieces.held > _MOST_HELD
            await self._settle()

    def _burst_packet(self, request: FtpPacket, packet: FtpPacket) -> tuple[bool, bool]:
        """Whether a packet belongs to the burst, and whether the burst is over."""
        pieces, start = self._pieces, request.offset
        place = (packet.seq - request.seq - 1) % _SEQS
        if packet.req_opcode != Opcode.BURST_READ_FILE or packet.session != self._session:
            return False, False
        nak = packet.nak
        if nak is not None and place == 0:
            self._refused_at_once(nak, start)
            return True, True
        distance = packet.offset - start
        if not self._fits(place, distance, last=nak is not None or not packet.data, size=len(packet.data)):
            return self._is_of_earlier(packet), pieces.complete
        if nak is not None or not packet.data:
            self._ended_at = packet.offset
            return True, True
        if packet.opcode != Opcode.ACK:
            return False, False
        pieces.put(packet.offset, packet.data)
        return True, packet.burst_complete or pieces.complete or pieces.front >= pieces.end

    def _is_of_earlier(self, packet: FtpPacket) -> bool:
        """Take a packet of a burst before this one, which still goes on or was under way for long."""
        if self._stride is None or packet.opcode != Opcode.ACK or not packet.data:
            return False
        for request in self._earlier:
            place, distance = (packet.seq - request.seq - 1) % _SEQS, packet.offset - request.offset
            if place < _MOST_SKIPPED and self._fits(place, distance, last=False, size=len(packet.data)):
                self._pieces.put(packet.offset, packet.data)
                return True
        return False

    def _fits(self, place: int, distance: int, *, last: bool, size: int) -> bool:
        """Whether the packet's number and its offset agree: what is late from another file's burst does not.

        All packets of a burst but the last one are of one size. A packet for which that does not hold counts as lost,
        and what it brought is read again.
        """
        if distance < 0:
            return False
        stride = self._stride
        if stride is None:
            if place == 0:
                stride = size or MOST_DATA
                fits = distance == 0
            else:
                stride = -(-distance // place)
                fits = 0 < stride <= MOST_DATA and size <= stride and (last or distance == place * stride)
            if fits and not last:
                self._stride = stride
            return fits
        steps = -(-distance // stride)
        return steps % _SEQS == place and size <= stride and (last or steps * stride == distance)

    def _refused_at_once(self, nak: tuple[int, int | None], start: int) -> None:
        if nak[0] == FtpNak.END_OF_FILE:
            self._ended_at = start
        elif nak[0] == FtpNak.UNKNOWN_COMMAND:
            self._bursts = False
        else:
            raise FtpRefused(self._what, *nak)
