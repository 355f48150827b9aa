"""Names on the simulated vehicle's disk, as its file server shows and changes them: folders, listings, checksums."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

from petalbus.handlers.mavlink.files.ftp_wire import (
    MOST_DATA,
    Entry,
    FtpNak,
    FtpPacket,
    Opcode,
    file_crc,
    pack_entry,
    pack_u32,
)
from petalbus.handlers.mavlink.sim.disk import Disk, DiskFull
from petalbus.handlers.mavlink.sim.made_files import SYSTEM_FILES, SYSTEM_FOLDER

Extra = Callable[[str], bytes | None]
"""The contents of a generated file, such as @PARAM/param.pck; None when there is no such file."""

_UNKNOWN_SIZE: Final = 100_000
"""What ArduPilot tells of files that it makes when somebody reads them."""


class Nak(Exception):
    """The answer is a refusal."""

    def __init__(self, error: FtpNak, number: int | None = None) -> None:
        self.error = error
        self.data = bytes((error,)) if number is None else bytes((error, number))
        super().__init__(error)


class Folders:
    """What is asked of a path, in PX4's way or ArduPilot's."""

    def __init__(self, disk: Disk, *, px4: bool, extra: Extra | None = None) -> None:
        """``extra`` makes generated files."""
        self.extra = extra
        self.lies: frozenset[Opcode] = frozenset()
        """Commands whose result the vehicle gets wrong."""
        self._px4 = px4
        self._disk = disk

    def path(self, raw: bytes) -> str:
        """The disk's path. PX4's paths without a slash begin at the root, too."""
        text = raw.partition(b"\0")[0].decode("utf-8", "replace")
        return "/" + "/".join(part for part in text.split("/") if part not in ("", "."))

    def generated(self, raw: bytes) -> bytes | None:
        """The contents of a file that is made when somebody asks for it."""
        make = self.extra
        return None if make is None else make(raw.partition(b"\0")[0].decode("utf-8", "replace"))

    def need_place_for(self, path: str) -> None:
        """Raise Nak where no file or folder can be made."""
        if path in self._disk.folders or path in self._disk.files:
            raise Nak(FtpNak.FILE_EXISTS)
        if (path.rpartition("/")[0] or "/") not in self._disk.folders:
            raise Nak(FtpNak.FILE_NOT_FOUND)

    def obey(self, opcode: Opcode, request: FtpPacket) -> bytes:
        """Commands that name a file or folder; the acknowledgement's data."""
        path, disk = self.path(request.data), self._disk
        made = self.generated(request.data)
        if made is not None and opcode is Opcode.CALC_FILE_CRC32:
            return pack_u32(file_crc(made))
        if opcode is Opcode.LIST_DIRECTORY:
            return self._list(path, request.offset)
        if opcode is Opcode.CREATE_DIRECTORY:
            self.need_place_for(path)
            disk.folders.add(path)
            return b""
        if opcode is Opcode.REMOVE_DIRECTORY:
            return self._remove_folder(path)
        if path not in disk.files and not (opcode is Opcode.RENAME and path in disk.folders):
            raise Nak(FtpNak.FILE_NOT_FOUND)
        if opcode is Opcode.REMOVE_FILE:
            disk.remove(path)
        elif opcode is Opcode.CALC_FILE_CRC32:
            return pack_u32(file_crc(disk.files[path]) ^ (opcode in self.lies))
        elif opcode is Opcode.RENAME:
            self._rename(path, self.path(request.data.partition(b"\0")[2]))
        elif opcode is Opcode.TRUNCATE_FILE:
            file = disk.files[path]
            try:
                disk.write(path, request.offset, b"")
            except DiskFull:
                raise Nak(FtpNak.FAIL_ERRNO, errno.ENOSPC) from None
            del file[request.offset :]
        else:
            raise Nak(FtpNak.UNKNOWN_COMMAND)
        return b""

    def _list(self, path: str, offset: int) -> bytes:
        try:
            entries = self._system_files() if self._is_system(path) else self._entries(path)
        except KeyError:
            raise Nak(FtpNak.FILE_NOT_FOUND) from None
        dots = [b"S\0", b"S\0"] if self._px4 else [] if self._is_system(path) else [b"D.\0", b"D..\0"]
        data = b""
        end = b"" if self._px4 else b"\0"  # ArduPilot's entries end with two zeros
        for entry in [*dots, *map(pack_entry, entries)][offset:]:
            raw = entry + end
            if len(data) + len(raw) > MOST_DATA:
                break
            data += raw
        if not data:
            raise Nak(FtpNak.END_OF_FILE)
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
            raise Nak(FtpNak.FILE_NOT_FOUND)
        if self._disk.listed(path) or path == "/":
            raise Nak(FtpNak.FAIL_ERRNO, errno.ENOTEMPTY)
        self._disk.folders.discard(path)
        return b""

    def _rename(self, old: str, new: str) -> None:
        self.need_place_for(new)
        disk = self._disk
        if old in disk.files:
            disk.files[new] = disk.files.pop(old)
            for log in disk.logs:
                log.path = new if log.path == old else log.path
            return
        if new.startswith(old + "/"):
            raise Nak(FtpNak.FAIL_ERRNO, errno.EINVAL)

        def moved(path: str) -> str:
            return new + path[len(old) :] if path == old or path.startswith(old + "/") else path

        disk.folders = {moved(path) for path in disk.folders}
        disk.files = {moved(path): data for path, data in disk.files.items()}
        for log in disk.logs:
            log.path = moved(log.path)
