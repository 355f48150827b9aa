"""One file on its way into the store: in one request, or in parts that a later attempt finds again.

Each part is read once. Its MD5 goes with the request, so that the store refuses what arrives broken, and is compared
with the ETag that the store answers. At the end the object's size and ETag are compared with the file's.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from io import BufferedReader
from typing import Any, Final

from petalbus.handlers.bucket import store as store_module
from petalbus.handlers.bucket.body import Body, Meter
from petalbus.handlers.bucket.errors import BucketError, Denied, FileRefused, NotThere, Unsupported, WrongBytes
from petalbus.handlers.bucket.files import FlightLog, unchanged
from petalbus.handlers.bucket.owner import OWNER, STORED_AT, UPLOAD, Owner
from petalbus.handlers.bucket.progress import InMemory, Progress
from petalbus.handlers.bucket.store import Occupied, Sent, Store, etag_is_md5

PARTS_AT_ONCE: Final = 2

INDEXED: Final = "indexed"
"""Metadata of a ROS bag whose recording was cut short: ``false``; tools have to index it before they can play it."""

_MD5: Final = re.compile(r"[0-9a-f]{32}")
_MD5_OF_PARTS: Final = re.compile(r"[0-9a-f]{32}-[0-9]+")

Turn = Callable[[], AbstractAsyncContextManager[None]]


def options_of(log: FlightLog, machine: str, more: Mapping[str, str] | None = None) -> dict[str, Any]:
    """How logs are stored: content type, and who stored what when."""
    metadata = {
        **(more or {}),
        **({INDEXED: "false"} if log.indexed is False else {}),
        "original-filename": log.path.name.encode("ascii", "replace").decode(),
        STORED_AT: datetime.now(UTC).isoformat(),
        OWNER: machine,
    }
    return {"ContentType": log.content_type, "Metadata": metadata}


async def put(
    store: Store, log: FlightLog, key: str, options: Mapping[str, Any], *, prefix: str = "", upload: str | None = None
) -> int:
    """Store a file, whole or not at all, in one go; its size in the store. Raises BucketError, as ``Transfer``."""
    progress = InMemory()
    try:
        return (await Transfer(store, log, key, options, progress=progress, prefix=prefix, upload=upload).run())[0]
    except BaseException:
        if progress.upload is not None:
            await asyncio.shield(_given_up(store, key, progress.upload))
        raise


async def _given_up(store: Store, key: str, upload: str) -> None:
    try:
        await store.abort(key, upload)
    except BucketError:
        return  # the store forgets it by its own rules


class Transfer:
    """One attempt. ``turn``: taken for each request that is large. ``meter`` counts the bytes.

    ``prefix``: the upload prefix. What another machine stores as ``key`` meanwhile is neither replaced nor deleted.
    ``upload``: the id of the upload that ``key`` was made for, where other uploads may make the same: what these have
    stored is not replaced either.
    """

    def __init__(
        self,
        store: Store,
        log: FlightLog,
        key: str,
        options: Mapping[str, Any],
        *,
        progress: Progress,
        turn: Turn | None = None,
        meter: Meter | None = None,
        prefix: str = "",
        upload: str | None = None,
    ) -> None:
        self._store = store
        self._log = log
        self._key = key
        self._upload = upload
        told = {} if upload is None else {UPLOAD: upload}
        self._options = {**options, "Metadata": {**options["Metadata"], **told}}
        self._progress = progress
        self._turn = turn or _at_once
        self._meter = meter or Meter()
        self._owner = Owner(store, options["Metadata"][OWNER], prefix)
        self._etags: dict[int, str] = {}
        self._md5s: dict[int, bytes] = {}

    async def run(self) -> tuple[int, str]:
        """Size and ETag in the store. Raises FileRefused when the file changes, Occupied, BucketError."""
        self._meter.begin(self._log.size)
        if self._progress.upload is None and self._log.size <= store_module.PART_BYTES:
            return await self._whole()
        size = self._progress.part_bytes if self._progress.upload else store_module.PART_BYTES
        async with self._opened() as file:
            return await self._in_parts(file, size)

    # -- in one request -----------------------------------------------------------------------------------------------

    async def _whole(self) -> tuple[int, str]:
        async with self._turn():
            async with self._opened() as file:
                data, md5 = await asyncio.to_thread(self._read, file, 0, self._log.size)
            body = Body(data, self._meter)
            stored = False
            try:
                sent = await self._owner.storing(
                    self._key,
                    lambda new: self._store.put(self._key, body, self._options, md5=_base64(md5), new=new),
                    self._upload,
                )
                stored = True
            finally:
                self._meter.ended(body, stored=stored)
        _compare(sent, md5.hex(), f"{self._key}")
        return await self._checked(md5.hex(), proven=sent.md5 and sent.etag == md5.hex())

    # -- in parts -----------------------------------------------------------------------------------------------------

    async def _in_parts(self, file: BufferedReader, size: int) -> tuple[int, str]:
        upload = self._progress.upload
        if upload is not None:
            async with self._turn():
                try:
                    await self._keep(file, upload, size)
                except NotThere:
                    if (found := await self._finished(file, size)) is not None:
                        return found
                    upload, size = None, store_module.PART_BYTES
                    await self._progress.begun(None, 0)
        if upload is None:
            async with self._turn():
                await self._progress.beginning()
                upload = await self._store.begin(self._key, self._options)
                await self._progress.begun(upload, size)
        count = -(-self._log.size // size)
        missing = iter([number for number in range(1, count + 1) if number not in self._etags])
        await self._send_all(file, upload, size, missing)
        await self._require_unchanged()
        async with self._turn():
            try:
                await self._owner.storing(
                    self._key, lambda new: self._store.complete(self._key, upload, self._etags, new=new), self._upload
                )
            except Occupied:
                await _given_up(self._store, self._key, upload)
                await self._progress.begun(None, 0)
                raise
            except NotThere:
                # a completion whose answer was lost: the object is there then
                if (found := await self._finished(file, size)) is None:
                    await self._progress.begun(None, 0)
                    raise WrongBytes("the store does not know the upload any more; it begins anew") from None
                return found
            proven = all(self._etags[number] == self._md5s[number].hex() for number in range(1, count + 1))
            return await self._checked(self._etag_of_parts(count), proven=proven)

    async def _keep(self, file: BufferedReader, upload: str, size: int) -> None:
        """Find the parts that the store has, and keep those whose size and checksum are the file's."""
        known = await self._progress.parts()
        try:
            there = {part.number: (part.etag, part.size) for part in await self._store.parts(self._key, upload)}
        except (Denied, Unsupported) as error:  # listing them is a right of its own: then our own notes must do
            if error.passes:
                raise  # nobody let us ask, and nobody would take the parts
            there = {number: (etag, self._length(number, size)) for number, (etag, _) in known.items()}
        for number, (etag, length) in sorted(there.items()):
            if length != self._length(number, size):
                continue
            _, md5 = await asyncio.to_thread(self._read, file, (number - 1) * size, length)
            if etag == md5.hex() or known.get(number) == (etag, md5.hex()):
                self._etags[number], self._md5s[number] = etag, md5
                self._meter.kept += length

    async def _send_all(self, file: BufferedReader, upload: str, size: int, missing: Iterator[int]) -> None:
        async def send() -> None:
            for number in missing:
                async with self._turn():
                    await self._send(file, upload, number, size)

        try:
            async with asyncio.TaskGroup() as tasks:
                for index in range(PARTS_AT_ONCE):
                    tasks.create_task(send(), name=f"bucket.parts-{index}")
        except BaseExceptionGroup as group:
            errors = group.exceptions
            first = next((one for one in errors if isinstance(one, FileRefused)), errors[0])
            raise first from None

    async def _send(self, file: BufferedReader, upload: str, number: int, size: int) -> None:
        data, md5 = await asyncio.to_thread(self._read, file, (number - 1) * size, self._length(number, size))
        body = Body(data, self._meter)
        del data
        stored = False
        try:
            sent = await self._store.put_part(self._key, upload, number, body, md5=_base64(md5))
            _compare(sent, md5.hex(), f"part {number} of {self._key}")
            stored = True
        except Unsupported as error:  # a store that cannot replace the part that it has
            await _given_up(self._store, self._key, upload)
            await self._progress.begun(None, 0)
            raise WrongBytes(f"{error}; the upload begins anew") from error
        except NotThere:  # the next attempt looks closer
            raise WrongBytes(f"the store does not know the upload of {self._key} any more") from None
        finally:
            self._meter.ended(body, stored=stored)
        self._etags[number], self._md5s[number] = sent.etag, md5
        await self._progress.part(number, sent.etag, md5.hex())

    # -- what was read, and what is stored ----------------------------------------------------------------------------

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[BufferedReader]:
        opening = asyncio.ensure_future(asyncio.to_thread(self._open))
        try:
            file = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(lambda done: None if done.exception() else done.result().close())
            raise
        try:
            yield file
        finally:
            file.close()  # it was only read: nothing is waited for

    def _open(self) -> BufferedReader:
        try:
            return self._log.path.open("rb")
        except OSError as error:
            raise _unreadable(self._log, error) from error

    def _length(self, number: int, size: int) -> int:
        return max(0, min(size, self._log.size - (number - 1) * size))

    def _read(self, file: BufferedReader, start: int, length: int) -> tuple[bytes, bytes]:
        """A piece and its MD5. Blocks. Raises FileRefused when the file is not the one that was looked at."""
        try:
            data = os.pread(file.fileno(), length, start)
            found = os.fstat(file.fileno())
        except OSError as error:
            raise _unreadable(self._log, error) from error
        if len(data) != length or (found.st_size, found.st_mtime_ns) != self._log.stamp:
            raise _changed(self._log)
        return data, hashlib.md5(data, usedforsecurity=False).digest()

    async def _require_unchanged(self) -> None:
        if not await asyncio.to_thread(unchanged, self._log):
            raise _changed(self._log)

    async def _finished(self, file: BufferedReader, size: int) -> tuple[int, str] | None:
        """The object, when it is there and is this file: an earlier attempt completed it."""
        if (told := await self._owner.seen(self._key)) is None:
            return None
        self._owner.require_ours(self._key, told)
        if int(told["ContentLength"]) != self._log.size:
            return None
        count = -(-self._log.size // size)
        for number in range(1, count + 1):
            if number not in self._md5s:
                length = self._length(number, size)
                self._md5s[number] = (await asyncio.to_thread(self._read, file, (number - 1) * size, length))[1]
        if not await self._is_this_file(told, self._etag_of_parts(count)):
            return None
        self._meter.kept = self._log.size
        return self._log.size, _etag(told)

    def _etag_of_parts(self, count: int) -> str:
        joined = b"".join(self._md5s[number] for number in range(1, count + 1))
        return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{count}"

    async def _checked(self, wanted: str, *, proven: bool) -> tuple[int, str]:
        """Compare the object with the file. A wrong one is taken away: half a log is worse than none.

        But only our own, of this attempt: another one is somebody's log, who was told that it is stored. Where the
        store does not let us look, its checksums of what it has taken are enough (``proven``).
        """
        try:
            told = await self._store.head(self._key)
        except Denied as error:
            if error.passes or not proven or not self._owner.names(self._key):
                raise
            return self._log.size, wanted
        size, etag = int(told["ContentLength"]), _etag(told)
        if size != self._log.size or not await self._is_this_file(told, wanted):
            await self._progress.begun(None, 0)
            found, ours = told.get("Metadata", {}), self._options["Metadata"]
            if found.get(OWNER) != self._owner.machine:
                raise Denied(f"Access denied: another machine stored {self._key!r} at the same time")
            if found.get(STORED_AT) == ours[STORED_AT]:
                await self._store.delete(self._key)
            raise WrongBytes(
                f"Upload failed: the store has {size} bytes with checksum {etag} as {self._key}; "
                f"the file has {self._log.size} with {wanted}"
            )
        return size, etag

    async def _is_this_file(self, told: Mapping[str, Any], wanted: str) -> bool:
        """Whether an object's ETag is the file's: of all of it, or of its parts. What is neither says nothing."""
        etag = _etag(told)
        if not etag_is_md5(told) or etag == wanted:
            return True
        if _MD5_OF_PARTS.fullmatch(etag):
            return False
        if not _MD5.fullmatch(etag):
            return True
        return "-" in wanted and etag == await asyncio.to_thread(self._md5_of_all)

    def _md5_of_all(self) -> str:
        """Reads the file once more. Blocks."""
        try:
            with self._open() as file:
                return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        except OSError as error:
            raise _unreadable(self._log, error) from error


@asynccontextmanager
async def _at_once() -> AsyncIterator[None]:
    yield


def _compare(sent: Sent, md5: str, what: str) -> None:
    if sent.md5 and _MD5.fullmatch(sent.etag) and sent.etag != md5:
        raise WrongBytes(f"Upload failed: the store has checksum {sent.etag} of {what}; the file's is {md5}")


def _etag(told: Mapping[str, Any]) -> str:
    return str(told["ETag"]).strip('"').lower()


def _base64(md5: bytes) -> str:
    return base64.b64encode(md5).decode()


def _changed(log: FlightLog) -> FileRefused:
    return FileRefused(f"File validation failed: {log.path} changed while it was read; upload it when it is complete")


def _unreadable(log: FlightLog, error: OSError) -> FileRefused:
    return FileRefused(f"File validation failed: {log.path} cannot be read ({error.strerror or error})")
