"""The local ends of FTP transfers: the unfinished file beside a download's target, and what is uploaded.

Files are touched in threads. A checksum goes along with what passes.
"""

from __future__ import annotations

import asyncio
import io
import os
from pathlib import Path
from typing import IO, Self

from petalbus.handlers.mavlink.files.ftp_talk import settled
from petalbus.handlers.mavlink.files.ftp_wire import MOST_DATA, file_crc

_SLICE = 1 << 20
_PIECES = 31


class PartFile:
    """``local`` + ".part": its length is how far a download came. ``crc`` is CalcFileCRC32 of what is in it."""

    def __init__(self, local: Path, file: IO[bytes], size: int, crc: int) -> None:
        self.size = size
        self.crc = crc
        self._local = local
        self._file = file

    @classmethod
    async def open(cls, local: Path, *, fresh: bool) -> Self:
        """Open what is there of ``local``, or make it; ``fresh`` forgets what is there. Raises OSError."""
        path = local.with_name(local.name + ".part")
        file: IO[bytes] = await asyncio.to_thread(_open_part, path, fresh)
        size = crc = 0
        while data := await asyncio.to_thread(file.read, _SLICE):
            crc = file_crc(data, crc)
            size += len(data)
        return cls(local, file, size, crc)

    async def write(self, data: bytes) -> None:
        """Append. The caller sees to it that it ends, for the thread goes on when its caller is cancelled."""
        if data:
            await asyncio.to_thread(self._append, data)
            self.crc = file_crc(data, self.crc)
            self.size += len(data)

    def _append(self, data: bytes) -> None:
        self._file.seek(self.size)
        self._file.write(data)
        self._file.flush()

    async def pieces(self) -> list[tuple[int, bytes]]:
        """Some pieces from all over it with their places, the last one of its end. Empty where nothing is in it."""
        return await asyncio.to_thread(self._pieces)

    def _pieces(self) -> list[tuple[int, bytes]]:
        last = max(0, self.size - MOST_DATA)
        found = []
        for place in sorted({last * at // _PIECES for at in range(_PIECES + 1)}):
            self._file.seek(place)
            found.append((place, self._file.read(min(MOST_DATA, self.size - place))))
        return [piece for piece in found if piece[1]]

    async def clear(self) -> None:
        """Forget what is in it."""
        self.size = self.crc = 0
        await settled(asyncio.to_thread(self._clear))

    def _clear(self) -> None:
        self._file.truncate(0)

    async def finish(self) -> None:
        """All is there: it becomes the target, which it replaces."""
        await settled(asyncio.to_thread(self._finish))

    def _finish(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        Path(self._file.name).replace(self._local)

    async def close(self) -> None:
        """Close it; an empty one is removed."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        if not self._file.closed:
            self._file.close()
            if not self.size:
                Path(self._file.name).unlink(missing_ok=True)


def _open_part(path: Path, fresh: bool) -> IO[bytes]:  # noqa: FBT001  # called through to_thread
    if fresh or not path.exists():
        return path.open("w+b")
    return path.open("r+b")


class Source:
    """What is uploaded: bytes, or a local file. ``crc`` is CalcFileCRC32 of what was read."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.size = size
        self.crc = 0
        self._file = file

    @classmethod
    async def open(cls, data: bytes | Path) -> Self:
        """Raises OSError when the file cannot be read."""
        if isinstance(data, bytes):
            return cls(io.BytesIO(data), len(data))
        file = await asyncio.to_thread(data.open, "rb")
        return cls(file, os.fstat(file.fileno()).st_size)

    async def read(self, count: int) -> bytes:
        """The next bytes."""
        data = await asyncio.to_thread(self._file.read, count)
        self.crc = file_crc(data, self.crc)
        return data

    async def close(self) -> None:
        """Close the file."""
        await asyncio.to_thread(self._file.close)
