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
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from petalbus.handlers.mavlink.files.ftp_file import PartFile, Source
from petalbus.handlers.mavlink.files.ftp_read import TELL_EVERY_S, Delivery, Keep, Pieces, Reader, Tell
from petalbus.handlers.mavlink.files.ftp_talk import FtpPeer, FtpTimeout, FtpTimes, Talk, settled
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

READ_MOST: Final = 64 << 20
"""Bytes that ``read`` keeps in memory at most."""

CHECK_MOST: Final = 4 << 20
"""Larger files are not checked by themselves: PX4 reads no messages, and so obeys no commands, while it computes."""

_BLOCK: Final = 64 << 10
_MOST_PLACES: Final = 20_000
_LOST: Final = (FtpNak.INVALID_SESSION, FtpNak.FILE_NOT_FOUND)


class FtpBusy(FtpError):
    """Other transfers with this vehicle did not end in the time allowed. Nothing was sent."""

    code = "FTP_BUSY"


class FtpTooLarge(FtpError):
    """The file does not fit into memory; ``download`` it."""

    code = "FTP_TOO_LARGE"


class FtpCorrupt(FtpError):
    """The vehicle's checksum of the file differs from that of what was transferred."""

    code = "FTP_CORRUPT"


class FtpClient:
    """File operations on the vehicle of a link.

    All raise FtpRefused, FtpTimeout, FtpBusy, FtpPathInvalid and NotConnected.
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
        raw = path_bytes(path)
        async with self._talk() as talk:
            return await self._crc(talk, path, raw)

    async def _crc(self, talk: Talk, path: str, raw: bytes) -> int:
        answer = await talk.ask(Opcode.CALC_FILE_CRC32, f"checksum of {path}", data=raw, silence=self._times.compute)
        try:
            return unpack_u32(answer.data)
        except ValueError:
            raise FtpError(f"checksum of {path}: the vehicle's answer has {len(answer.data)} bytes, not 4") from None

    async def _change(self, opcode: Opcode, what: str, data: bytes, *, offset: int = 0) -> None:
        async with self._talk() as talk:
            await talk.ask(opcode, what, offset=offset, data=data)

    # -- reading ------------------------------------------------------------------------------------------------------

    async def read(self, path: str, *, tell: Tell | None = None, offset: int = 0) -> bytes:
        """A file's bytes from ``offset`` on, at most 64 MiB. Raises FtpTooLarge."""
        out = bytearray()

        async def keep(data: bytes, size: int) -> None:
            if size - offset > READ_MOST:
                raise FtpTooLarge(f"{path}: {size - offset} bytes; at most {READ_MOST} are read into memory")
            out.extend(data)

        async with self._talk() as talk:
            await self._fetch(talk, path, offset, keep, tell)
        return bytes(out)

    async def download(self, path: str, local: Path, *, tell: Tell | None = None) -> None:
        """Download a file to ``local``, by way of ``local`` + ".part", which a later call goes on with.

        What goes on is compared with the end of what is there. Files up to 4 MiB are checked by the vehicle's checksum
        where it has one. Generated files ("@...") come anew each time and are not checked. Raises FtpCorrupt, and
        OSError for the local file.
        """
        raw = path_bytes(path)
        async with self._talk() as talk:
            part = await PartFile.open(local, fresh=path.startswith("@"))
            try:
                resumed = await self._resume(talk, path, part)

                async def keep(data: bytes, _size: int) -> None:
                    await part.write(data)

                size = await self._fetch(talk, path, part.size, keep, tell)
                good = path.startswith("@") or await self._same(talk, path, raw, part.crc, size)
                if not good and resumed:
                    log.warning("%s: what was there of an earlier download is not of this file; it comes anew", path)
                    await part.clear()
                    size = await self._fetch(talk, path, 0, keep, tell)
                    good = await self._same(talk, path, raw, part.crc, size)
                if not good:
                    await part.clear()
                    raise FtpCorrupt(f"download {path}: the vehicle's checksum differs; nothing was kept. Try again")
                await part.finish()
            finally:
                await settled(part.close())

    async def _resume(self, talk: Talk, path: str, part: PartFile) -> bool:
        """Whether what is there is the beginning of the vehicle's file; if not, it is cleared away."""
        if not part.size:
            return False
        tail = await part.tail(MOST_DATA)
        async with self._opened(talk, Opcode.OPEN_FILE_RO, path) as (session, size):
            if part.size <= size:
                start = part.size - len(tail)
                pieces = Pieces(start, part.size)
                reader = Reader(talk, session, pieces, what=f"read {path}", settle=_nothing, bursts=False)
                await reader.run()
                if pieces.next == part.size and pieces.take() == tail:
                    return True
        log.info("%s: what is there of an earlier download does not fit the file; it comes anew", path)
        await part.clear()
        return False

    async def _fetch(self, talk: Talk, path: str, start: int, keep: Keep, tell: Tell | None) -> int:
        """Read from ``start`` to the end and give what comes to ``keep``, in order; the file's size.

        When the vehicle has lost the session on the way (it rebooted, or we were silent for long), opens it again.
        """
        delivery = Delivery(start, keep, tell)
        while True:
            began = delivery.at
            try:
                async with self._opened(talk, Opcode.OPEN_FILE_RO, path) as (session, size):
                    delivery.pieces = Pieces(began, size)
                    reader = Reader(talk, session, delivery.pieces, what=f"read {path}", settle=delivery.settle)
                    try:
                        await reader.run()
                    finally:
                        await settled(delivery.pass_on())
            except FtpRefused as refused:
                if delivery.at == began or refused.error not in _LOST:
                    raise
                log.info("system %d lost the session of %s; opening it again", talk.peer.system, path)
            else:
                await delivery.tell_now()
                if delivery.pieces.end < size and not path.startswith("@"):
                    await self._prove_end(talk, path, delivery.pieces.end, size)
                return delivery.pieces.end

    async def _prove_end(self, talk: Talk, path: str, end: int, told: int) -> None:
        """A file that ends before the size that was told: only where it is that short now. Raises FtpCorrupt."""
        async with self._opened(talk, Opcode.OPEN_FILE_RO, path) as (_, now):
            if now != end:
                raise FtpCorrupt(f"read {path}: it ended after {end} of {told} bytes, and has {now} now. Try again")

    async def _same(self, talk: Talk, path: str, raw: bytes, crc: int, size: int, *, may_grow: bool = True) -> bool:
        """Whether the vehicle's checksum is ours; True where it cannot tell, or where the file grew meanwhile."""
        if size > CHECK_MOST:
            return True
        try:
            if await self._crc(talk, path, raw) == crc:
                return True
        except FtpRefused as refused:
            log.info("%s is not checked: %s", path, refused)
            return True
        async with self._opened(talk, Opcode.OPEN_FILE_RO, path) as (_, now):
            return may_grow and now > size

    # -- writing ------------------------------------------------------------------------------------------------------

    async def upload(self, data: bytes | Path, remote: str, *, tell: Tell | None = None) -> None:
        """Write a file on the vehicle, which replaces one of that name; checked like a download.

        When it does not succeed a piece of the file remains there. Raises FtpCorrupt, OSError for a local file.
        """
        raw, what = path_bytes(remote), f"write {remote}"
        source = await Source.open(data)
        try:
            async with self._talk() as talk:
                async with self._opened(talk, Opcode.CREATE_FILE, remote) as (session, _):
                    await self._write(talk, session, source, what, tell)
                if not remote.startswith("@") and not await self._same(
                    talk, remote, raw, source.crc, source.size, may_grow=False
                ):
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

    @asynccontextmanager
    async def _opened(self, talk: Talk, opcode: Opcode, path: str) -> AsyncIterator[tuple[int, int]]:
        """An open file: its session and size. It is closed in any case."""
        try:
            yield await talk.open(opcode, path)
        finally:
            await settled(talk.close())


async def _nothing() -> None:
    """Nothing to settle."""
