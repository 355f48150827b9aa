"""An object of a store as it comes: a piece at a time, also a range of it, and on from where a connection broke."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from importlib import import_module
from typing import Any, Final

from petalbus.handlers.bucket.errors import Away, BucketError, WrongBytes
from petalbus.handlers.bucket.store import CHUNK_BYTES, Store

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
