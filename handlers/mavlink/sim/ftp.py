"""The simulated vehicle's file server (MAVLink FTP): PX4's ways, with one session, or ArduPilot's, with several.

ArduPilot has one worker for all of it: while a burst leaves, five requests wait, and further ones are lost. PX4 serves
during a burst, closes a file ten seconds after the last request, also in the midst of a burst, and tells nobody.
"""

from __future__ import annotations

import errno
from collections import deque
from dataclasses import dataclass
from typing import Final

from petalbus.handlers.mavlink.files.ftp_wire import (
    FTP_ID,
    MOST_DATA,
    FtpNak,
    FtpPacket,
    Opcode,
    pack_packet,
    pack_u32,
    unpack_packet,
)
from petalbus.handlers.mavlink.sim.autopilot import PX4, Autopilot
from petalbus.handlers.mavlink.sim.disk import Disk, DiskFull
from petalbus.handlers.mavlink.sim.ftp_folders import Extra, Folders, Nak
from petalbus.handlers.mavlink.sim.service import Onboard
from petalbus.handlers.mavlink.wire.framing import Frame

_TICKS_PER_S: Final = 50
_PX4_BURST: Final = 35_000
_ARDUPILOT_BURST: Final = 2000 * MOST_DATA
_ARDUPILOT_SESSIONS: Final = 5
_IDLE_S: Final = 10.0
_MOST_CLIENTS: Final = 16
_QUEUE: Final = 5
_KEEPS_ERRNO: Final = (FtpNak.INVALID_SESSION, FtpNak.NO_SESSIONS_AVAILABLE, FtpNak.END_OF_FILE)
Client = tuple[int, int]
"""System and component."""


@dataclass(slots=True)
class _Session:
    """An open file. ``contents`` is set where it is a generated one."""

    client: Client
    path: str
    writing: bool
    size: int
    used_at: float
    contents: bytes | None = None


@dataclass(slots=True)
class _Burst:
    """Packets that still have to leave."""

    session: int
    client: Client
    seq: int
    offset: int
    size: int
    left: int
    due: float


class FtpServer:
    """A service on the disk. ``sessions`` are the open files; ``done`` counts what was carried out."""

    handles: frozenset[int] = frozenset((FTP_ID,))

    def __init__(
        self,
        onboard: Onboard,
        autopilot: Autopilot,
        disk: Disk,
        *,
        extra: Extra | None = None,
        packets_per_s: int = 4000,
    ) -> None:
        """A burst leaves at ``packets_per_s`` at most. PX4's way keeps one answer for all, ArduPilot's one a client."""
        self.sessions: dict[int, _Session] = {}
        self.done: dict[Opcode, int] = {}
        self.announce: int | None = None
        """The size that is told of generated files; None: the true one."""
        self.without: frozenset[Opcode] = frozenset()
        """Commands that this vehicle does not know."""
        self.burst_after_s = 0.0
        """How long it takes to begin a burst: a slow card."""
        self.idle_s = _IDLE_S
        """After so long without a request a file is closed."""
        self.newer = False
        """PX4's later way: a burst of no file is refused as a session that is not there, not by its file system."""
        self.lost_errno = errno.EBADF
        """What it tells otherwise. Versions between tell whatever failed last, and 0 after a listing."""
        self._onboard = onboard
        self._px4 = autopilot is PX4
        self._disk = disk
        self._folders = Folders(disk, px4=self._px4, extra=extra)
        self._per_tick = packets_per_s / _TICKS_PER_S
        self._budget = self._per_tick
        self._bursts: dict[int, _Burst] = {}
        self._last: dict[Client, FtpPacket] = {}
        self._queue: deque[tuple[FtpPacket, Client]] = deque()
        self._known_size = 0  # PX4 still knows it when the file is closed
        self._exists = False  # PX4's errno is the one of a folder that is there already

    @property
    def extra(self) -> Extra | None:
        """What makes generated files."""
        return self._folders.extra

    @extra.setter
    def extra(self, make: Extra | None) -> None:
        self._folders.extra = make

    @property
    def lies(self) -> frozenset[Opcode]:
        """Commands whose result it gets wrong."""
        return self._folders.lies

    @lies.setter
    def lies(self, opcodes: frozenset[Opcode]) -> None:
        self._folders.lies = opcodes

    # -- being a service ----------------------------------------------------------------------------------------------

    def receive(self, frame: Frame) -> None:
        """A request: answer it, or answer it again; ArduPilot does that when its turn comes."""
        unpacked = unpack_packet(frame.payload)
        if unpacked is None or not self._onboard.is_for_us(*unpacked[1:]):
            return
        if not self._px4:
            if len(self._queue) < _QUEUE:
                self._queue.append((unpacked[0], (frame.sysid, frame.compid)))
                self._work()
            return
        for session in self.sessions.values():
            session.used_at = self._onboard.since_boot()
        self._answer(unpacked[0], (frame.sysid, frame.compid))

    def _work(self) -> None:
        """ArduPilot's worker: nothing else is done before a burst has ended."""
        while self._queue and not self._bursts:
            self._answer(*self._queue.popleft())

    def _answer(self, request: FtpPacket, client: Client) -> None:
        last = self._last.get((0, 0) if self._px4 else client)
        same_session = self._px4 or (last is not None and last.session == request.session)
        if last is not None and request.seq + 1 == last.seq and same_session:
            self._send(last, client)
            return
        answer = FtpPacket(
            (request.seq + 1) & 0xFFFF, Opcode.ACK, request.session, request.offset, req_opcode=request.opcode
        )
        try:
            made = self._serve(request, client)
            if made is None:
                self._stream(client)
                return
            session, data = made
            answer = answer._replace(session=session, data=data)
        except Nak as nak:
            answer = answer._replace(opcode=Opcode.NAK, data=self._told(nak))
        self._keep(answer, client)
        self._send(answer, client)

    def _told(self, nak: Nak) -> bytes:
        """What PX4 tells of a refusal: that something exists, whatever it is, while that is its last errno."""
        if not self._px4:
            return nak.data
        if nak.error in _KEEPS_ERRNO:
            return bytes((FtpNak.FILE_EXISTS,)) if self._exists else nak.data
        self._exists = nak.error == FtpNak.FILE_EXISTS
        return nak.data

    def tick(self) -> None:
        """Send what a fiftieth of a second allows; close what was left open."""
        self._budget = min(max(1.0, self._per_tick), self._budget + self._per_tick)
        for burst in list(self._bursts.values()):
            self._stream(burst.client)
        self._work()
        now = self._onboard.since_boot()
        for number, session in list(self.sessions.items()):
            if now - session.used_at > self.idle_s:
                self._close(number)

    def reset(self) -> None:
        """The vehicle boots: nothing is open."""
        self.sessions.clear()
        self._bursts.clear()
        self._last.clear()
        self._queue.clear()
        self._known_size = 0
        self._exists = False

    def _keep(self, answer: FtpPacket, client: Client) -> None:
        """PX4 keeps small answers only: the others are made of reads, which it does again."""
        key = (0, 0) if self._px4 else client
        if self._px4 and len(answer.data) > 4:
            self._last.pop(key, None)
            return
        if len(self._last) >= _MOST_CLIENTS and key not in self._last:
            del self._last[next(iter(self._last))]
        self._last[key] = answer

    def _send(self, packet: FtpPacket, client: Client) -> None:
        self._onboard.send_payload(FTP_ID, pack_packet(packet, system=client[0], component=client[1]))

    # -- requests -----------------------------------------------------------------------------------------------------

    def _serve(self, request: FtpPacket, client: Client) -> tuple[int, bytes] | None:
        """Session and data of the acknowledgement; None when packets of a burst are the answer. Raises Nak."""
        try:
            opcode = Opcode(request.opcode)
        except ValueError:
            raise Nak(FtpNak.UNKNOWN_COMMAND) from None
        if opcode in self.without or (opcode is Opcode.TRUNCATE_FILE and not self._px4):
            raise Nak(FtpNak.UNKNOWN_COMMAND)
        self.done[opcode] = self.done.get(opcode, 0) + 1
        if opcode in (Opcode.NONE, Opcode.TERMINATE_SESSION, Opcode.RESET_SESSIONS):
            return self._end(opcode, request, client)
        if opcode in (Opcode.OPEN_FILE_RO, Opcode.OPEN_FILE_WO, Opcode.CREATE_FILE):
            return self._open(opcode, request, client)
        if opcode is Opcode.READ_FILE:
            return request.session, self._read(
                self._session(request, client), request.offset, request.size or MOST_DATA
            )
        if opcode is Opcode.BURST_READ_FILE:
            self._begin_burst(request, client)
            return None
        if opcode is Opcode.WRITE_FILE:
            return request.session, self._write(self._session(request, client, writing=True), request)
        if opcode is Opcode.LIST_DIRECTORY:
            self._exists = False  # at its end
        return request.session, self._folders.obey(opcode, request)

    def _end(self, opcode: Opcode, request: FtpPacket, client: Client) -> tuple[int, bytes]:
        if opcode is Opcode.TERMINATE_SESSION:
            if request.session not in self.sessions and self._px4:
                raise Nak(FtpNak.INVALID_SESSION)
            self._close(request.session)
        elif opcode is Opcode.RESET_SESSIONS:
            for number, session in list(self.sessions.items()):
                if self._px4 or session.client == client:
                    self._close(number)
        return request.session, b""

    def _close(self, number: int) -> None:
        self.sessions.pop(number, None)
        self._bursts.pop(number, None)

    def _open(self, opcode: Opcode, request: FtpPacket, client: Client) -> tuple[int, bytes]:
        number = 0 if self._px4 else request.session
        if number in self.sessions:
            raise Nak(FtpNak.NO_SESSIONS_AVAILABLE if self._px4 else FtpNak.FAIL)
        if len(self.sessions) >= _ARDUPILOT_SESSIONS:
            raise Nak(FtpNak.NO_SESSIONS_AVAILABLE)
        path = self._folders.path(request.data)
        writing = opcode is not Opcode.OPEN_FILE_RO
        contents = None if writing else self._folders.generated(request.data)
        if contents is None and path not in self._disk.files:
            if not writing:
                raise Nak(FtpNak.FILE_NOT_FOUND)
            self._folders.need_place_for(path)
            self._disk.files[path] = bytearray()
        elif opcode is Opcode.CREATE_FILE:
            self._disk.files[path].clear()
        size = len(self._disk.files[path]) if contents is None else self.announce or len(contents)
        self._known_size = size
        self.sessions[number] = _Session(client, path, writing, size, self._onboard.since_boot(), contents)
        return number, b"" if writing and not self._px4 else pack_u32(size)

    def _session(self, request: FtpPacket, client: Client, *, writing: bool = False) -> _Session:
        session = self.sessions.get(request.session)
        if session is None or (not self._px4 and session.client != client):
            raise Nak(FtpNak.INVALID_SESSION if self._px4 else FtpNak.FILE_NOT_FOUND)
        if session.writing is not writing:
            raise Nak(FtpNak.FAIL)
        session.used_at = self._onboard.since_boot()
        return session

    def _contents(self, session: _Session) -> bytes | bytearray:
        return self._disk.files.get(session.path, b"") if session.contents is None else session.contents

    def _read(self, session: _Session, offset: int, size: int) -> bytes:
        contents = self._contents(session)
        end = min(session.size, len(contents)) if self._px4 else len(contents)
        data = bytes(contents[offset : min(end, offset + size)])
        if not data:
            raise Nak(FtpNak.END_OF_FILE)
        return data

    def _write(self, session: _Session, request: FtpPacket) -> bytes:
        if session.path not in self._disk.files:
            raise Nak(FtpNak.FAIL_ERRNO, errno.EIO)
        try:
            self._disk.write(session.path, request.offset, request.data)
        except DiskFull:
            raise Nak(FtpNak.FAIL_ERRNO, errno.ENOSPC) from None
        return pack_u32(len(request.data)) if self._px4 else b""

    # -- bursts -------------------------------------------------------------------------------------------------------

    def _begin_burst(self, request: FtpPacket, client: Client) -> None:
        if self._px4 and not self.newer and request.session == 0 and not self.sessions:
            # it does not look whether session 0 is open: what it then reads is no file
            within = request.offset < self._known_size
            raise Nak(FtpNak.FAIL_ERRNO, self.lost_errno) if within else Nak(FtpNak.END_OF_FILE)
        self._session(request, client)
        most = _PX4_BURST if self._px4 else _ARDUPILOT_BURST
        size = request.size or MOST_DATA
        due = self._onboard.since_boot() + self.burst_after_s
        self._bursts[request.session] = _Burst(request.session, client, request.seq, request.offset, size, most, due)

    def _stream(self, client: Client) -> None:
        """Send packets of a client's burst while the tick allows some."""
        for burst in [burst for burst in self._bursts.values() if burst.client == client]:
            session = self.sessions[burst.session]
            if not self._px4:
                session.used_at = self._onboard.since_boot()
            if self._onboard.since_boot() < burst.due:
                continue
            while self._budget >= 1 and burst.session in self._bursts:
                self._budget -= 1
                burst.seq = (burst.seq + 1) & 0xFFFF
                packet = FtpPacket(
                    burst.seq, Opcode.ACK, burst.session, burst.offset, req_opcode=Opcode.BURST_READ_FILE
                )
                try:
                    data = self._read(session, burst.offset, burst.size)
                    burst.offset += len(data)
                    burst.left -= len(data)
                    packet = packet._replace(data=data, burst_complete=burst.left <= 0)
                except Nak as nak:
                    packet = packet._replace(opcode=Opcode.NAK, data=nak.data, burst_complete=not self._px4)
                if packet.opcode == Opcode.NAK or packet.burst_complete:
                    del self._bursts[burst.session]
                    self._keep(packet, client)
                self._send(packet, client)
