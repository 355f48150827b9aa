"""Where a flight log goes while it is fetched: into memory, or into a file that a later download goes on with."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from petalbus.handlers.mavlink.files.ftp_talk import settled
from petalbus.handlers.mavlink.files.log_pieces import PIECE


class Sink(Protocol):
    """Takes a log, window by window. The methods raise OSError."""

    async def begin(self, note: Mapping[str, int]) -> int:
        """How many bytes are there of the log that ``note`` names; ``note["size"]`` is its size in bytes."""

    async def anew(self, note: Mapping[str, int]) -> None:
        """What is there is of another log: forget it."""

    async def peek(self, offset: int, size: int) -> bytes:
        """Bytes that are there."""

    async def store(self, offset: int, data: bytes) -> None:
        """Put a window where it belongs."""

    async def finish(self, size: int) -> None:
        """All is there."""


class MemorySink:
    """A log in memory: ``data``."""

    def __init__(self) -> None:
        self.data = bytearray()

    async def begin(self, note: Mapping[str, int]) -> int:  # noqa: ARG002  # nothing ever is there
        """Nothing is there."""
        return 0

    async def anew(self, note: Mapping[str, int]) -> None:  # noqa: ARG002  # of any
        """Forget it."""
        self.data.clear()

    async def peek(self, offset: int, size: int) -> bytes:
        """Bytes that are there."""
        return bytes(self.data[offset : offset + size])

    async def store(self, offset: int, data: bytes) -> None:
        """Windows come in their order."""
        self.data[offset:] = data

    async def finish(self, size: int) -> None:
        """Nothing is left to do."""


class FileSink:
    """A log in a file. Files are worked on in threads, whose work is done even when nobody waits for it any more."""

    def __init__(self, path: Path) -> None:
        """``path`` is where the whole log shall be."""
        self._part = PartFile(path)

    async def begin(self, note: Mapping[str, int]) -> int:
        """How many bytes are there."""
        return await asyncio.to_thread(self._part.begin, note)

    async def anew(self, note: Mapping[str, int]) -> None:
        """Forget it."""
        await settled(asyncio.to_thread(self._part.anew, note))

    async def peek(self, offset: int, size: int) -> bytes:
        """Bytes that are there."""
        return await asyncio.to_thread(self._part.read, offset, size)

    async def store(self, offset: int, data: bytes) -> None:
        """Put a window where it belongs."""
        await settled(asyncio.to_thread(self._part.write, offset, data))

    async def finish(self, size: int) -> None:
        """Give it its name."""
        await settled(asyncio.to_thread(self._part.finish, size))


class PartFile:
    """A log's beginning on disk, ``<path>.part``, and a note which log it is, ``<path>.part.json``.

    All methods block and raise OSError.
    """

    def __init__(self, path: Path) -> None:
        """``path`` is where the whole log shall be."""
        self._path = path
        self._part = path.with_name(path.name + ".part")
        self._note = path.with_name(path.name + ".part.json")

    def begin(self, note: Mapping[str, int]) -> int:
        """How many bytes are there of the log that ``note`` names; what is there of another goes.

        ``note["size"]`` is the log's size in bytes.
        """
        try:
            known = json.loads(self._note.read_text())
            size = self._part.stat().st_size if known == dict(note) else 0
        except (OSError, ValueError):
            size = 0
        size = min(size, note["size"]) // PIECE * PIECE
        if size == 0:
            self.anew(note)
        return size

    def anew(self, note: Mapping[str, int]) -> None:
        """Begin with nothing."""
        self._part.write_bytes(b"")
        self._note.write_text(json.dumps(dict(note)))

    def read(self, offset: int, size: int) -> bytes:
        """A piece of what is there."""
        with self._part.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def write(self, offset: int, data: bytes) -> None:
        """Put a window where it belongs."""
        with self._part.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def finish(self, size: int) -> None:
        """All is there: give it its name."""
        with self._part.open("r+b") as file:
            file.truncate(size)
            os.fsync(file.fileno())
        self._part.replace(self._path)
        self._note.unlink(missing_ok=True)
