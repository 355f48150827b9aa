"""One file from the vehicle, whole and right, or an error: it is read, proven, and read anew where the proof fails.

The proof is the vehicle's checksum where it has one and the file is not too large for that, else pieces of what came
that are compared with the file opened anew (see ftp_proof.py), also each time that a lost session is opened again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Protocol

from petalbus.handlers.mavlink.files.ftp_file import PartFile
from petalbus.handlers.mavlink.files.ftp_proof import Proof, fits
from petalbus.handlers.mavlink.files.ftp_read import Delivery, Pieces, Reader, Tell
from petalbus.handlers.mavlink.files.ftp_talk import Talk, settled
from petalbus.handlers.mavlink.files.ftp_wire import (
    FtpError,
    FtpNak,
    FtpRefused,
    Opcode,
    file_crc,
    path_bytes,
    unpack_u32,
)

log = logging.getLogger(__name__)

CHECK_MOST: Final = 4 << 20
"""Larger files are not checked by themselves: PX4 reads no messages, and so obeys no commands, while it computes."""

ATTEMPTS: Final = 3
"""How often a file is read whose proof fails."""

_REST_S: Final = 0.25
_LOST: Final = (FtpNak.INVALID_SESSION, FtpNak.FILE_NOT_FOUND)
_PX4_LOST: Final = (FtpNak.FAIL_ERRNO, FtpNak.FILE_EXISTS)
"""How PX4 says it, too: older ones burst from no file, with the errno of that or of whatever failed before it."""
_MIXED: Final = "what came is not all of this file: something else uses the vehicle's files, or changes this one"


class FtpTooLarge(FtpError):
    """The file does not fit into memory; ``download`` it."""

    code = "FTP_TOO_LARGE"


class FtpCorrupt(FtpError):
    """What was transferred is not what the vehicle's file holds."""

    code = "FTP_CORRUPT"


class Sink(Protocol):
    """Where the bytes go: ``size`` are there already, ``crc`` is CalcFileCRC32 of them."""

    size: int
    crc: int

    async def write(self, data: bytes) -> None:
        """Append."""

    async def clear(self) -> None:
        """Forget all of it."""


class Memory:
    """A sink in memory; ``data`` is what is there."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.size = 0
        self.crc = 0

    async def write(self, data: bytes) -> None:
        """Append."""
        self.data += data
        self.crc = file_crc(data, self.crc)
        self.size += len(data)

    async def clear(self) -> None:
        """Forget all of it."""
        self.data.clear()
        self.size = self.crc = 0


class Fetch:
    """Reads a file into a sink. Generated files ("@...") are other ones at each opening, and cannot be proven."""

    def __init__(
        self, talk: Talk, path: str, sink: Sink, *, origin: int = 0, tell: Tell | None = None, most: int | None = None
    ) -> None:
        """The sink's first byte is the file's byte ``origin``. ``most``: bytes that may come; None: any number."""
        self._talk = talk
        self._path = path
        self._sink = sink
        self._origin = origin
        self._tell = tell
        self._most = most
        self._made = path.startswith("@")

    async def run(self) -> None:
        """Read what is not there yet. What is there may be wrong: then all comes anew.

        Raises FtpCorrupt (and the sink is empty) when it is wrong three times, FtpTooLarge, FtpRefused, FtpTimeout.
        """
        why: str | None = None
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(_REST_S * attempt)
            why = await self._attempt()
            if why is None:
                return
            log.warning("%s from system %d: %s", self._path, self._talk.peer.system, why)
            await self._sink.clear()
        raise FtpCorrupt(f"read {self._path}: {why}; it was read {ATTEMPTS} times, and nothing was kept. Try again")

    async def _attempt(self) -> str | None:
        """Read to the end; what is wrong with it, None: nothing.

        When the vehicle has lost the session on the way (it rebooted, or we were silent for long), opens it again.
        """
        proof, told = Proof(), -1
        delivery = Delivery(self._origin + self._sink.size, self._keep, self._tell)
        while True:
            began = delivery.at
            try:
                async with opened(self._talk, Opcode.OPEN_FILE_RO, self._path) as (session, size):
                    self._check_size(size)
                    if told >= 0 and (why := await self._differs(session, size, told, proof)) is not None:
                        return why
                    told = size
                    delivery.pieces = Pieces(began, size, note=proof.note)
                    await self._read(session, delivery)
            except FtpRefused as refused:
                if delivery.at == began or not self._is_lost(refused):
                    raise
                log.info("system %d lost the session of %s; opening it again", self._talk.peer.system, self._path)
            else:
                await delivery.tell_now()
                return None if self._made else await self._judge(delivery.pieces.end, told, proof)

    async def _read(self, session: int, delivery: Delivery) -> None:
        what = f"read {self._path}"
        try:
            await Reader(self._talk, session, delivery.pieces, what=what, settle=delivery.settle).run()
        finally:
            await settled(delivery.pass_on())

    def _is_lost(self, refused: FtpRefused) -> bool:
        """Whether it means that the session is gone."""
        if refused.error in _LOST:
            return True
        return self._talk.peer.is_px4 and refused.error in _PX4_LOST

    async def _keep(self, data: bytes, _size: int) -> None:
        await self._sink.write(data)

    def _check_size(self, size: int) -> None:
        if self._most is not None and size - self._origin > self._most:
            problem = f"{size - self._origin} bytes; at most {self._most} are read into memory"
            raise FtpTooLarge(f"{self._path}: {problem}")

    # -- the proof ----------------------------------------------------------------------------------------------------

    async def _differs(self, session: int, size: int, told: int, proof: Proof) -> str | None:
        """What tells that the file that is open now is not the one that was read; None: nothing does."""
        if self._made:
            return "its session was lost, and it is made anew each time that it is opened"
        if size < told:
            return f"it had {told} bytes, and has {size} now"
        return None if await fits(self._talk, session, proof.pieces(), f"check {self._path}") else _MIXED

    async def _judge(self, end: int, told: int, proof: Proof) -> str | None:
        """What is wrong with the whole, of which ``end`` is the end and ``told`` was told; None: nothing."""
        wrong: str | None = None
        if self._origin == 0 and 0 < end <= CHECK_MOST:
            crc = await self._checksum()
            if crc == self._sink.crc:
                return None
            wrong = None if crc is None else "the vehicle's checksum differs"
        try:
            async with opened(self._talk, Opcode.OPEN_FILE_RO, self._path) as (session, now):
                if end < told and now != end:
                    return f"it ended after {end} of {told} bytes, and has {now} now"
                if wrong is not None and now <= end:  # one that grows, such as a log, has another checksum already
                    return wrong
                return await self._differs(session, now, end, proof)
        except FtpRefused as refused:
            if not self._is_lost(refused):
                raise
            return "its session was lost while it was checked"

    async def _checksum(self) -> int | None:
        """The vehicle's; None where it has none."""
        try:
            return await checksum(self._talk, self._path)
        except FtpRefused as refused:
            log.info("the checksum of %s is not known: %s", self._path, refused)
            return None


async def is_beginning(talk: Talk, path: str, part: PartFile) -> bool:
    """Whether what is there of an earlier download begins the vehicle's file, by pieces from all over it."""
    async with opened(talk, Opcode.OPEN_FILE_RO, path) as (session, size):
        return part.size <= size and await fits(talk, session, await part.pieces(), f"check {path}")


async def checksum(talk: Talk, path: str) -> int:
    """The vehicle's checksum of a file. Raises FtpRefused, FtpTimeout, and FtpError for an answer without one."""
    what, silence = f"checksum of {path}", talk.times.compute
    answer = await talk.ask(Opcode.CALC_FILE_CRC32, what, data=path_bytes(path), silence=silence)
    try:
        return unpack_u32(answer.data)
    except ValueError:
        raise FtpError(f"{what}: the vehicle's answer has {len(answer.data)} bytes, not 4") from None


@asynccontextmanager
async def opened(talk: Talk, opcode: Opcode, path: str) -> AsyncIterator[tuple[int, int]]:
    """An open file: its session and size. It is closed in any case."""
    try:
        yield await talk.open(opcode, path)
    finally:
        await settled(talk.close())
