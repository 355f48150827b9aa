"""The simulated vehicle's file server (MAVLink FTP): PX4's ways, with one session, or ArduPilot's, with several."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from petalbus.handlers.mavlink.files.ftp_wire import (
    FTP_ID,
    MOST_DATA,
    Entry,
    FtpNak,
    FtpPacket,
    Opcode,
    file_crc,
    pack_entry,
    pack_packet,
    pack_u32,
    unpack_packet,
)
from petalbus.handlers.mavlink.sim.autopilot import PX4, Autopilot
from petalbus.handlers.mavlink.sim.disk import Disk, DiskFull
from petalbus.handlers.mavlink.sim.made_files import SYSTEM_FILES, SYSTEM_FOLDER
from petalbus.handlers.mavlink.sim.service import Onboard
from petalbus.handlers.mavlink.wire.framing import Frame

Extra = Callable[[str], bytes | None]
"""The contents of a generated file, such as @PARAM/param.pck; None when there is no such file."""

_TICKS_PER_S: Final = 50
_PX4_BURST: Final = 35_000
_ARDUPILOT_BURST: Final = 2000 * MOST_DATA
_ARDUPILOT_SESSIONS: Final = 5
_IDLE_S: Final = 10.0
_MOST_CLIENTS: Final = 16
_UNKNOWN_SIZE: Final = 100_000
"""What ArduPilot tells of files that it makes when somebody reads them."""

Client = tuple[int, int]
"""System and component."""


class _Nak(Exception):
    """The answer is a refusal."""

    def __init__(self, error: FtpNak, number: int | None = None) -> None:
        self.data = bytes((error,)) if number is None else bytes((error, number))
        super().__init__(error)


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
        self.extra = extra
        self.announce: int | None = None
        """The size that is told of generated files; None: the true one."""
        self.without: frozenset[Opcode] = frozenset()
        """Commands that this vehicle does not know."""
        self.lies: frozenset[Opcode] = frozenset()
        """Commands whose result it gets wrong."""
        self._onboard = onboard
        self._px4 = autopilot is PX4
        self._disk = disk
        self._per_tick = max(1, packets_per_s // _TICKS_PER_S)
        self._budget = self._per_tick
        self._bursts: dict[int, _Burst] = {}
        self._last: dict[Client, FtpPacket] = {}

    # -- being a service ----------------------------------------------------------------------------------------------

    def receive(self, frame: Frame) -> None:
        """A request: answer it, or answer it again."""
        unpacked = unpack_packet(frame.payload)
        if unpacked is None or not self._onboard.is_for_us(*unpacked[1:]):
            return
        request, client = unpacked[0], (frame.sysid, frame.compid)
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
        except _Nak as nak:
            answer = answer._replace(opcode=Opcode.NAK, data=nak.data)
        self._keep(answer, client)
        self._send(answer, client)

    def tick(self) -> None:
        """Send what a fiftieth of a second allows; close what was left open."""
        self._budget = self._per_tick
        for burst in list(self._bursts.values()):
            self._stream(burst.client)
        now = self._onboard.since_boot()
        for number, session in list(self.sessions.items()):
            if now - session.used_at > _IDLE_S:
                self._close(number)

    def reset(self) -> None:
        """The vehicle boots: nothing is open."""
        self.sessions.clear()
        self._bursts.clear()
        self._last.clear()

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
        """Session and data of the acknowledgement; None when packets of a burst are the answer. Raises _Nak."""
        try:
            opcode = Opcode(request.opcode)
        except ValueError:
            raise _Nak(FtpNak.UNKNOWN_COMMAND) from None
        if opcode in self.without or (opcode is Opcode.TRUNCATE_FILE and not self._px4):
            raise _Nak(FtpNak.UNKNOWN_COMMAND)
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
        return request.session, self._on_path(opcode, request)

    def _end(self, opcode: Opcode, request: FtpPacket, client: Client) -> tuple[int, bytes]:
        if opcode is Opcode.TERMINATE_SESSION:
            if request.session not in self.sessions and self._px4:
                raise _Nak(FtpNak.INVALID_SESSION)
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
            raise _Nak(FtpNak.NO_SESSIONS_AVAILABLE if self._px4 else FtpNak.FAIL)
        if len(self.sessions) >= _ARDUPILOT_SESSIONS:
            raise _Nak(FtpNak.NO_SESSIONS_AVAILABLE)
        path = self._path(request.data)
        writing = opcode is not Opcode.OPEN_FILE_RO
        contents = None if writing else self._generated(request.data)
        if contents is None and path not in self._disk.files:
            if not writing:
                raise _Nak(FtpNak.FILE_NOT_FOUND)
            self._need_place_for(path)
            self._disk.files[path] = bytearray()
        elif opcode is Opcode.CREATE_FILE:
            self._disk.files[path].clear()
        size = len(self._disk.files[path]) if contents is None else self.announce or len(contents)
        self.sessions[number] = _Session(client, path, writing, size, self._onboard.since_boot(), contents)
        return number, b"" if writing and not self._px4 else pack_u32(size)

    def _session(self, request: FtpPacket, client: Client, *, writing: bool = False) -> _Session:
        session = self.sessions.get(request.session)
        if session is None or (not self._px4 and session.client != client):
            raise _Nak(FtpNak.INVALID_SESSION if self._px4 else FtpNak.FILE_NOT_FOUND)
        if session.writing is not writing:
            raise _Nak(FtpNak.FAIL)
        session.used_at = self._onboard.since_boot()
        return session

    def _contents(self, session: _Session) -> bytes | bytearray:
        return self._disk.files.get(session.path, b"") if session.contents is None else session.contents

    def _read(self, session: _Session, offset: int, size: int) -> bytes:
        contents = self._contents(session)
        end = min(session.size, len(contents)) if self._px4 else len(contents)
        data = bytes(contents[offset : min(end, offset + size)])
        if not data:
            raise _Nak(FtpNak.END_OF_FILE)
        return data

    def _write(self, session: _Session, request: FtpPacket) -> bytes:
        if session.path not in self._disk.files:
            raise _Nak(FtpNak.FAIL_ERRNO, errno.EIO)
        try:
            self._disk.write(session.path, request.offset, request.data)
        except DiskFull:
            raise _Nak(FtpNak.FAIL_ERRNO, errno.ENOSPC) from None
        return pack_u32(len(request.data)) if self._px4 else b""

    # -- bursts -------------------------------------------------------------------------------------------------------

    def _begin_burst(self, request: FtpPacket, client: Client) -> None:
        if self._px4 and request.session == 0 and not self.sessions:
            raise _Nak(FtpNak.END_OF_FILE)  # it does not look whether session 0 is open: no file is an empty one
        self._session(request, client)
        most = _PX4_BURST if self._px4 else _ARDUPILOT_BURST
        size = request.size or MOST_DATA
        self._bursts[request.session] = _Burst(request.session, client, request.seq, request.offset, size, most)

    def _stream(self, client: Client) -> None:
        """Send packets of a client's burst while the tick allows some."""
        for burst in [burst for burst in self._bursts.values() if burst.client == client]:
            session = self.sessions[burst.session]
            session.used_at = self._onboard.since_boot()
            while self._budget and burst.session in self._bursts:
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
                except _Nak as nak:
                    packet = packet._replace(opcode=Opcode.NAK, data=nak.data, burst_complete=not self._px4)
                if packet.opcode == Opcode.NAK or packet.burst_complete:
                    del self._bursts[burst.session]
                    self._keep(packet, client)
                self._send(packet, client)

    # -- folders and files --------------------------------------------------------------------------------------------

    def _path(self, raw: bytes) -> str:
        """The disk's path. PX4's paths without a slash begin at the root, too."""
        text = raw.partition(b"\0")[0].decode("utf-8", "replace")
        return "/" + "/".join(part for part in text.split("/") if part not in ("", "."))

    def _generated(self, raw: bytes) -> bytes | None:
        """The contents of a file that is made when somebody asks for it."""
        make = self.extra
        return None if make is None else make(raw.partition(b"\0")[0].decode("utf-8", "replace"))

    def _need_place_for(self, path: str) -> None:
        """Raise _Nak where no file or folder can be made."""
        if path in self._disk.folders or path in self._disk.files:
            raise _Nak(FtpNak.FILE_EXISTS)
        if (path.rpartition("/")[0] or "/") not in self._disk.folders:
            raise _Nak(FtpNak.FILE_NOT_FOUND)

    def _on_path(self, opcode: Opcode, request: FtpPacket) -> bytes:
        """Commands that name a file or folder; the acknowledgement's data."""
        path, disk = self._path(request.data), self._disk
        made = self._generated(request.data)
        if made is not None and opcode is Opcode.CALC_FILE_CRC32:
            return pack_u32(file_crc(made))
        if opcode is Opcode.LIST_DIRECTORY:
            return self._list(path, request.offset)
        if opcode is Opcode.CREATE_DIRECTORY:
            self._need_place_for(path)
            disk.folders.add(path)
            return b""
        if opcode is Opcode.REMOVE_DIRECTORY:
            return self._remove_folder(path)
        if path not in disk.files and not (opcode is Opcode.RENAME and path in disk.folders):
            raise _Nak(FtpNak.FILE_NOT_FOUND)
        if opcode is Opcode.REMOVE_FILE:
            disk.remove(path)
        elif opcode is Opcode.CALC_FILE_CRC32:
            return pack_u32(file_crc(disk.files[path]) ^ (opcode in self.lies))
        elif opcode is Opcode.RENAME:
            self._rename(path, self._path(request.data.partition(b"\0")[2]))
        elif opcode is Opcode.TRUNCATE_FILE:
            file = disk.files[path]
            try:
                disk.write(path, request.offset, b"")
            except DiskFull:
                raise _Nak(FtpNak.FAIL_ERRNO, errno.ENOSPC) from None
            del file[request.offset :]
        else:
            raise _Nak(FtpNak.UNKNOWN_COMMAND)
        return b""

    def _list(self, path: str, offset: int) -> bytes:
        try:
            entries = self._system_files() if self._is_system(path) else self._entries(path)
        except KeyError:
            raise _Nak(FtpNak.FILE_NOT_FOUND) from None
        dots = [b"S\0", b"S\0"] if self._px4 else [] if self._is_system(path) else [b"D.\0", b"D..\0"]
        data = b""
        end = b"" if self._px4 else b"\0"  # ArduPilot's entries end with two zeros
        for entry in [*dots, *map(pack_entry, entries)][offset:]:
            raw = entry + end
            if len(data) + len(raw) > MOST_DATA:
                break
            data += raw
        if not data:
            raise _Nak(FtpNak.END_OF_FILE)
        return data

    def _is_system(self, path: str) -> bool:
        return not self._px4 and path == f"/{SYSTEM_FOLDER}"

    def _system_files(self) -> list[Entry]:
        return [Entry(name, _UNKNOWN_SIZE) for name in SYSTEM_FILES]

    def _entries(self, path: str) -> list[Entry]:
        system = [] if self._px4 or path != "/" else [Entry(SYSTEM_FOLDER, None)]
        return [*system, *(Entry(*one) for one in self._disk.listed(path))]

    def _remove_folder(self, path: str) -> bytes:
        if path not in self._disk.folders:
            raise _Nak(FtpNak.FILE_NOT_FOUND)
        if self._disk.listed(path) or path == "/":
            raise _Nak(FtpNak.FAIL_ERRNO, errno.ENOTEMPTY)
        self._disk.folders.discard(path)
        return b""

    def _rename(self, old: str, new: str) -> None:
        self._need_place_for(new)
        disk = self._disk
        if old in disk.files:
            disk.files[new] = disk.files.pop(old)
            for log in disk.logs:
                log.path = new if log.path == old else log.path
            return
        if new.startswith(old + "/"):
            raise _Nak(FtpNak.FAIL_ERRNO, errno.EINVAL)

        def moved(path: str) -> str:
            return new + path[len(old) :] if path == old or path.startswith(old + "/") else path

        disk.folders = {moved(path) for path in disk.folders}
        disk.files = {moved(path): data for path, data in disk.files.items()}
        for log in disk.logs:
            log.path = moved(log.path)
