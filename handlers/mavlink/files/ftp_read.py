"""Reading one open file: bursts, the gaps that loss leaves in them, and where the file ends.

A burst is one request and many packets, as many as the vehicle likes; only one is under way at a time. What is missing
of it is read piece by piece, several requests in flight, before the next burst begins. So what waits for a gap to be
filled is never more than a burst, and of that no more than four megabytes.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

from petalbus.handlers.mavlink.files.ftp_talk import FtpTimeout, Talk, settled
from petalbus.handlers.mavlink.files.ftp_wire import MOST_DATA, FtpNak, FtpPacket, FtpRefused, Opcode
from petalbus.handlers.mavlink.params.round_trip import RoundTrip

TELL_EVERY_S: Final = 0.2
_MOST_HELD: Final = 4 << 20
_BATCH: Final = 128
_BLOCK: Final = 64 << 10
_QUIET: Final = 0.1, 1.0
_STALLED_REST_S: Final = 0.05
_SEQS: Final = 1 << 16
_MOST_SKIPPED: Final = 4096


class Pieces:
    """A file from ``start`` on, as far as it is here. ``next``: all before it is here. ``end``: where it ends. Pure."""

    def __init__(self, start: int, size: int, *, note: Callable[[int, bytes], None] | None = None) -> None:
        """``note`` gets each piece that is taken."""
        self.next = start
        self.end = size
        self.front = start
        """Behind the last byte that is here."""
        self.got = 0
        """Bytes that came, each counted once (but where packets overlap)."""
        self.held = 0
        """Bytes that wait for a gap before them."""
        self._note = note
        self._ready = bytearray()
        self._ahead: dict[int, bytes] = {}
        self._order: list[int] = []

    @property
    def complete(self) -> bool:
        """True when nothing is missing."""
        return self.next >= self.end

    def put(self, offset: int, data: bytes) -> None:
        """A piece came. What lies behind the end, or is here already, is left out."""
        data = data[: max(0, self.end - offset)]
        stop = offset + len(data)
        if not data or stop <= self.next:
            return
        if self._note is not None:
            self._note(offset, data)
        self.front = max(self.front, stop)
        if offset > self.next:
            known = len(self._ahead.get(offset, b""))
            if known < len(data):
                if not known:
                    heapq.heappush(self._order, offset)
                self._ahead[offset] = data
                self.held += len(data) - known
                self.got += len(data) - known
            return
        self.got += stop - self.next
        self._append(offset, data)
        while self._order and self._order[0] <= self.next:
            offset = heapq.heappop(self._order)
            data = self._ahead.pop(offset)
            self.held -= len(data)
            self._append(offset, data)

    def _append(self, offset: int, data: bytes) -> None:
        new = data[self.next - offset : max(0, self.end - offset)]
        self._ready += new
        self.next += len(new)

    def finish(self, end: int) -> None:
        """The file ends here, earlier than was thought."""
        self.end = max(self.next, min(self.end, end))
        self.front = min(self.front, self.end)

    def holes(self) -> list[tuple[int, int]]:
        """The gaps before ``front``."""
        found: list[tuple[int, int]] = []
        at = self.next
        for offset in sorted(self._ahead):
            if offset > at:
                found.append((at, offset))
            at = max(at, offset + len(self._ahead[offset]))
        return found

    def take(self) -> bytes:
        """What is ready, in order, since it was last asked for."""
        ready, self._ready = bytes(self._ready), bytearray()
        return ready


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
        talk, pieces = self._talk, self._pieces
        peer, times = talk.peer, talk.times
        start = pieces.next
        request = FtpPacket(peer.next_seq(), Opcode.BURST_READ_FILE, self._session, start, size=MOST_DATA)
        began = heard = time.monotonic()
        sends, flowing, over = 0, False, False
        try:
            while not over:
                now = time.monotonic()
                if flowing:
                    due = heard + min(_QUIET[1], max(_QUIET[0], 2 * self._gaps.patience(_QUIET[1] / 2)))
                    if now >= due:
                        return
                else:
                    if now - began > times.silence:
                        raise FtpTimeout(f"{self._what}: the vehicle did not answer for {times.silence:g} s")
                    patience = max(0.1, peer.trip.patience(times.resend)) * 1.5 ** min(max(0, sends - 1), 20)
                    due = (heard if sends else now) + min(times.resend, patience)
                    if not sends or now >= due:
                        talk.send(request)
                        sends += 1
                        heard = now
                        continue
                packet = await talk.receive(due - now)
                fitting = 0
                while packet is not None and not over:
                    fits, over = self._burst_packet(request, packet)
                    fitting += fits
                    packet = talk.take() if fitting < _BATCH and not over else None
                if fitting:
                    now = time.monotonic()
                    if flowing:
                        self._gaps.sample(now - heard)
                    heard, flowing = now, True
                    over = over or pieces.held > _MOST_HELD
                    await self._settle()
                await asyncio.sleep(0)
        finally:
            # the rest of this burst may still come: its numbers stay free
            peer.next_seq(skip=min(_MOST_SKIPPED, (pieces.end - start) // (self._stride or MOST_DATA) + 2))

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
            return False, False
        if nak is not None or not packet.data:
            self._ended_at = packet.offset
            return True, True
        if packet.opcode != Opcode.ACK:
            return False, False
        pieces.put(packet.offset, packet.data)
        return True, packet.burst_complete or pieces.complete or pieces.front >= pieces.end

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
