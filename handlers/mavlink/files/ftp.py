"""Files on a vehicle over MAVLink FTP: list, read, download, upload, remove, rename, checksums.

One conversation at a time with a vehicle: PX4 can have one file open, for everybody. Who comes meanwhile waits in
order. What a crash left open there is closed when it is in the way, and what we open is closed again, also when the
caller is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from petalbus.handlers.mavlink.files.ftp_fetch import (
    CHECK_MOST,
    Fetch,
    FtpCorrupt,
    FtpTooLarge,
    Memory,
    checksum,
    is_beginning,
    opened,
)
from petalbus.handlers.mavlink.files.ftp_file import PartFile, Source
from petalbus.handlers.mavlink.files.ftp_read import TELL_EVERY_S, Tell
from petalbus.handlers.mavlink.files.ftp_talk import FtpBusy, FtpPeer, FtpTimeout, FtpTimes, Talk, settled
from petalbus.handlers.mavlink.files.ftp_wire import (
    FTP_ID,
    MOST_DATA,
    Entry,
    FtpError,
    FtpNak,
    FtpPacket,
    FtpRefused,
    Opcode,
    path_bytes,
    rename_bytes,
    unpack_entries,
    unpack_u32,
)
from petalbus.handlers.mavlink.flight.vehicle import Vehicle
from petalbus.handlers.mavlink.wire.calls import Calls

log = logging.getLogger(__name__)

__all__ = ["READ_MOST", "FtpBusy", "FtpClient", "FtpCorrupt", "FtpTooLarge"]

READ_MOST: Final = 64 << 20
"""Bytes that ``read`` keeps in memory at most."""

_BLOCK: Final = 64 << 10
_MOST_PLACES: Final = 20_000


class FtpClient:
    """File operations on the vehicle of a link.

    All raise FtpRefused, FtpTimeout, FtpBusy, FtpPathInvalid and NotConnected. What changes something is sent only when
    the vehicle is seen to be free: ArduPilot at a burst would do it minutes later, when nobody expects it any more.
    Paths are the vehicle's own, such as ``/fs/microsd/log`` or ``@PARAM/param.pck``, of at most 238 bytes.
    """

    def __init__(self, calls: Calls, vehicle: Vehicle, *, times: FtpTimes | None = None) -> None:
        """``calls`` must see the frames of the vehicle's link."""
        self._calls = calls
        self._vehicle = vehicle
        self._times = times or FtpTimes()
        self._turn = asyncio.Lock()
        self._peers: dict[int, FtpPeer] = {}

    # -- folders and names --------------------------------------------------------------------------------------------

    async def list_folder(self, path: str) -> list[Entry]:
        """What a folder holds. Folders have no size. "." and ".." are left out."""
        raw, what = path_bytes(path), f"list {path}"
        found: list[Entry] = []
        offset = 0
        async with self._talk() as talk:
            while offset < _MOST_PLACES:
                try:
                    answer = await talk.ask(Opcode.LIST_DIRECTORY, what, offset=offset, data=raw)
                except FtpRefused as refused:
                    if refused.error == FtpNak.END_OF_FILE:
                        return found
                    raise
                places, entries = unpack_entries(answer.data)
                if not places:
                    return found
                found += entries
                offset += places
        raise FtpError(f"{what}: the vehicle lists more than {_MOST_PLACES} names; the folder is not listed")

    async def remove(self, path: str) -> None:
        """Remove a file."""
        await self._change(Opcode.REMOVE_FILE, f"remove {path}", path_bytes(path))

    async def make_folder(self, path: str) -> None:
        """Make a folder. The one above it must be there."""
        what = f"make the folder {path}"
        await self._change(Opcode.CREATE_DIRECTORY, what, path_bytes(path))

    async def remove_folder(self, path: str) -> None:
        """Remove an empty folder."""
        what = f"remove the folder {path}"
        await self._change(Opcode.REMOVE_DIRECTORY, what, path_bytes(path))

    async def rename(self, old: str, new: str) -> None:
        """Give a file or folder another path. Both together have at most 237 bytes."""
        await self._change(Opcode.RENAME, f"rename {old} to {new}", rename_bytes(old, new))

    async def truncate(self, path: str, size: int) -> None:
        """Make a file ``size`` bytes long. ArduPilot does not know this command."""
        if not 0 <= size < 1 << 32:
            raise FtpError(f"truncate {path}: a size of {size} bytes is not possible")
        await self._change(Opcode.TRUNCATE_FILE, f"truncate {path}", path_bytes(path), offset=size)

    async def crc32(self, path: str) -> int:
        """The vehicle's checksum of a file, which it reads for that; ``ftp_wire.file_crc`` computes the same."""
        path_bytes(path)  # raises before anything is sent
        async with self._talk() as talk:
            return await checksum(talk, path)

    async def _change(self, opcode: Opcode, what: str, data: bytes, *, offset: int = 0) -> None:
        async with self._talk() as talk:
            await talk.need_free(what)
            await talk.ask(opcode, what, offset=offset, data=data)

    # -- reading ------------------------------------------------------------------------------------------------------

    async def read(
        self, path: str, *, tell: Tell | None = None, offset: int = 0, patience: float | None = None
    ) -> bytes:
        """A file's bytes from ``offset`` on, at most 64 MiB, checked as ``download`` does it.

        ``patience``: seconds to wait for the end of a burst that nobody wants any more (None: minutes); FtpBusy then.
        Raises FtpTooLarge, FtpCorrupt.
        """
        path_bytes(path)
        memory = Memory()
        async with self._talk() as talk:
            if patience is not None:
                with suppress(FtpTimeout):  # mere silence is given its time at the opening
                    await talk.need_free(f"read {path}", patience)
            await Fetch(talk, path, memory, origin=offset, tell=tell, most=READ_MOST).run()
        return bytes(memory.data)

    async def download(self, path: str, local: Path, *, tell: Tell | None = None) -> None:
        """Download a file to ``local``, by way of ``local`` + ".part", which a later call goes on with.

        What is there of it is compared with the vehicle's file first. What came is checked: by the vehicle's checksum
        where it has one and the file has at most 4 MiB, else by pieces of it, compared with the file opened again. What
        fails comes anew, and ``tell`` begins again. Generated files ("@...") come anew each time and are not checked.
        Raises FtpCorrupt, and OSError for the local file.
        """
        path_bytes(path)
        async with self._talk() as talk:
            part = await PartFile.open(local, fresh=path.startswith("@"))
            try:
                if part.size and not await is_beginning(talk, path, part):
                    log.info("%s: what is there of an earlier download does not fit; it comes anew", path)
                    await part.clear()
                await Fetch(talk, path, part, tell=tell).run()
                await part.finish()
            finally:
                await settled(part.close())

    # -- writing ------------------------------------------------------------------------------------------------------

    async def upload(self, data: bytes | Path, remote: str, *, tell: Tell | None = None) -> None:
        """Write a file on the vehicle, which replaces one of that name; checked by its checksum.

        When it does not succeed a piece of the file remains there. Raises FtpCorrupt, OSError for a local file.
        """
        path_bytes(remote)
        what = f"write {remote}"
        source = await Source.open(data)
        try:
            async with self._talk() as talk:
                await talk.need_free(what)
                async with opened(talk, Opcode.CREATE_FILE, remote) as (session, _):
                    await self._write(talk, session, source, what, tell)
                if not remote.startswith("@") and not await _arrived(talk, remote, source):
                    raise FtpCorrupt(f"{what}: the vehicle's checksum differs; what is there now is not the file")
        finally:
            await settled(source.close())

    async def _write(self, talk: Talk, session: int, source: Source, what: str, tell: Tell | None) -> None:
        at, done = 0, 0
        told = 0.0

        def taken(request: FtpPacket, answer: FtpPacket, sends: int) -> None:
            nonlocal done
            if answer.nak is not None:
                raise FtpRefused(what, *answer.nak, sends=sends)
            if len(answer.data) >= 4 and unpack_u32(answer.data) < len(request.data):
                raise FtpError(f"{what}: the vehicle took only a part at byte {request.offset}; is its disk full?")
            done += len(request.data)

        while block := await source.read(_BLOCK):
            asked = (
                FtpPacket(0, Opcode.WRITE_FILE, session, at + start, block[start : start + MOST_DATA])
                for start in range(0, len(block), MOST_DATA)
            )
            try:
                await talk.ask_all(asked, taken, what, window=talk.peer.window)
            except FtpTimeout as timeout:
                raise FtpTimeout(
                    f"{timeout}; {done} of {source.size} bytes are there", done=done, total=source.size
                ) from None
            at += len(block)
            if tell is not None and (at == source.size or time.monotonic() - told >= TELL_EVERY_S):
                told = time.monotonic()
                await tell(done, source.size)

    # -- conversations ------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _talk(self) -> AsyncIterator[Talk]:
        """Our turn to talk with the vehicle."""
        self._vehicle.heard_lately()
        try:
            async with asyncio.timeout(self._times.turn):
                await self._turn.acquire()
        except TimeoutError:
            raise FtpBusy(
                f"another file transfer with the vehicle goes on for more than {self._times.turn:g} s; nothing was "
                "sent. Try again when it is over"
            ) from None
        try:
            state = self._vehicle.heard_lately()
            peer = self._peers.get(state.system)
            if peer is None or peer.autopilot != state.autopilot:
                peer = self._peers[state.system] = FtpPeer(state.system, state.autopilot)
            with self._calls.listen({FTP_ID}, state.system) as inbox:
                yield Talk(self._calls, inbox, peer, self._times)
        finally:
            self._turn.release()


async def _arrived(talk: Talk, path: str, source: Source) -> bool:
    """Whether the vehicle's checksum is that of what was sent; True where it cannot tell."""
    if source.size > CHECK_MOST:
        return True
    try:
        return await checksum(talk, path) == source.crc
    except FtpRefused as refused:
        log.info("%s is not checked: %s", path, refused)
        return True
