"""An object of a store as it comes: a piece at a time, also a range of it, and on from where a connection broke."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from importlib import import_module
from io import FileIO
from pathlib import Path
from typing import Any, Final

from petalbus.handlers.bucket.errors import Away, BucketError, WrongBytes
from petalbus.handlers.bucket.store import CHUNK_BYTES, Store

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_BREAKS: Final = 3
_PAUSE_S: Final = 0.2


class Reading:
    """``size``, ``etag``: of the object, as its head said. ``await begin()`` first, then iterate; close it."""

    def __init__(self, store: Store, key: str, *, size: int, etag: str) -> None:
        self.size = size
        self.etag = etag
        self._store = store
        self._key = key
        self._body: Any = None
        self._at = 0
        self._last = -1

    async def begin(self, first: int = 0, last: int | None = None) -> None:
        """Ask for the bytes ``first`` to ``last``. Raises BucketError; WrongBytes where it is another object now."""
        self._at, self._last = first, self.size - 1 if last is None else last
        if self._at > self._last:
            return
        answer = await self._store.read(self._key, self._at, self._last)
        self._body = answer["Body"]
        if str(answer.get("ETag", "")).strip('"') != self.etag:
            self.close()
            raise WrongBytes(f"{self._key} was replaced while it was read: ask again")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The bytes. Raises BucketError when they do not come any more."""
        breaks = 0
        try:
            while self._at <= self._last:
                piece = await self._piece()
                if piece:
                    self._at += len(piece)
                    yield piece
                    continue
                breaks += 1
                if breaks > _BREAKS:
                    raise Away(f"the store broke off at byte {self._at} of {self._key}")
                self.close()
                await asyncio.sleep(_PAUSE_S * breaks)
                await self.begin(self._at, self._last)
        finally:
            self.close()

    def close(self) -> None:
        """Take nothing more."""
        body, self._body = self._body, None
        if body is not None:
            body.close()

    async def _piece(self) -> bytes:
        """The next one; none where the connection broke."""
        broken = import_module("botocore.exceptions").BotoCoreError, import_module("aiohttp").ClientError
        try:
            piece: bytes = await self._body.read(CHUNK_BYTES)
        except (*broken, OSError, TimeoutError):
            return b""
        if len(piece) > self._last + 1 - self._at:
            raise BucketError(f"the store sent more of {self._key} than was asked for")
        return piece


class PathRefused(BucketError):
    """There is no writing to this place."""

    code = "path_refused"
    status = 400


class DiskFull(BucketError):
    """The file has no room."""

    code = "disk_full"
    status = 507


async def load(store: Store, key: str, told: Mapping[str, Any], path: Path | str) -> int:
    """Load an object into a file, which appears only when it is complete; its size in bytes.

    ``told``: the object's head. Folders are made, a file that is there is replaced. Raises PathRefused, DiskFull,
    BucketError.
    """
    reading = Reading(store, key, size=int(told["ContentLength"]), etag=str(told["ETag"]).strip('"'))
    part = _Part(path)
    try:
        await _to_its_end(part.open)
        await reading.begin()
        async for piece in reading:
            await _to_its_end(part.write, piece)
        await _to_its_end(part.keep)
    except (OSError, ValueError, TypeError) as error:  # the store's own are BucketErrors
        why = getattr(error, "strerror", None) or str(error)
        kind = DiskFull if getattr(error, "errno", None) in _FULL else PathRefused
        raise kind(f"Download failed: {path} cannot be written ({why})") from error
    finally:
        reading.close()
        await _to_its_end(part.drop)
    return reading.size


async def _to_its_end(call: Callable[..., None], *arguments: Any) -> None:
    """In a thread, and waited for also when we are cancelled: it would write on into what is taken away."""
    task = asyncio.ensure_future(asyncio.to_thread(call, *arguments))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()
        raise


class _Part:
    """A file while it is incomplete: beside its place, with a name of its own. All methods block."""

    def __init__(self, path: Path | str) -> None:
        self._path = path
        self._target = Path()
        self._part: Path | None = None
        self._file: FileIO | None = None

    def open(self) -> None:
        """Raises PathRefused, OSError, and what odd paths raise."""
        target = self._target = Path(os.path.realpath(self._path))  # a link stays, and what it points to is replaced
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(target.stat().st_mode):
                raise PathRefused(f"Download failed: {self._path} is there and is no regular file")
        part = target.with_name(f"{target.name[:50]}.{uuid.uuid4().hex[:12]}.part")
        self._file = FileIO(part, "x")
        self._part = part

    def write(self, piece: bytes) -> None:
        """All of a piece."""
        assert self._file is not None
        left = memoryview(piece)
        while left:
            left = left[self._file.write(left) :]

    def keep(self) -> None:
        """It is complete."""
        assert self._file is not None
        assert self._part is not None
        os.fsync(self._file.fileno())
        self._part.replace(self._target)
        self._part = None

    def drop(self) -> None:
        """Close it; remove what was not kept."""
        with contextlib.suppress(OSError):
            if self._file is not None:
                self._file.close()
            if self._part is not None:
                self._part.unlink(missing_ok=True)
