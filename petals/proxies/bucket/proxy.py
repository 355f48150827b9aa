"""The bucket proxy: flight logs are stored, found, moved and deleted, each machine only its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Final

from petalbus.handlers.bucket.errors import BucketError, Denied, NotThere
from petalbus.handlers.bucket.files import ALLOWED, check_file
from petalbus.handlers.bucket.names import TEMPLATE, checked_key, checked_prefix, make_key, names_machine
from petalbus.handlers.bucket.store import Store
from petalbus.petals.proxies.base import BaseProxy
from petalbus.petals.proxies.errors import error_result

log = logging.getLogger("S3BucketProxy")

OWNER: Final = "machine-id"
"""Metadata of an object: the machine that stored it."""

HEADS_AT_ONCE: Final = 8
Result = dict[str, Any]


class S3BucketProxy(BaseProxy):
    """Every call answers a dict: with ``success``, or ``{"error": text, "status": number}``.

    ``key_template``: how a key is made where none is given. ``documented_magic``: also accept logs that begin with
    ``ULogData``. Nothing is sent before the first call.
    """

    kind: ClassVar[str] = "bucket"
    ALLOWED_EXTENSIONS: ClassVar[frozenset[str]] = ALLOWED

    def __init__(
        self,
        session_token_url: str,
        bucket_name: str,
        upload_prefix: str = "flight_logs/",
        debug: bool = False,
        request_timeout: int = 30,
        *,
        region: str = "us-east-1",
        endpoint: str | None = None,
        key_template: str = TEMPLATE,
        documented_magic: bool = False,
        machine_id: str | None = None,
        organization: Any = None,
    ) -> None:
        super().__init__()
        self.session_token_url = session_token_url
        self.bucket_name = bucket_name
        self.upload_prefix = upload_prefix
        self.region = region
        self._endpoint = endpoint
        self._timeout = request_timeout
        self._template = key_template
        self._documented = documented_magic
        self._machine = machine_id
        self._organization = organization
        self._store: Store | None = None
        if debug:
            log.setLevel(logging.DEBUG)

    async def start(self) -> None:
        """Ready at once when bucket and token service are configured: neither is asked before a call needs it."""
        missing = [
            name
            for name, value in (("s3_bucket_name", self.bucket_name), ("session_token_url", self.session_token_url))
            if not value
        ]
        if missing:
            self._set_ready(False, f"not configured: {', '.join(missing)}")
            return
        self._store = Store(
            self.bucket_name,
            token_url=self.session_token_url,
            region=self.region,
            endpoint=self._endpoint,
            timeout=self._timeout,
        )
        self._set_ready(True)

    async def stop(self) -> None:
        """Close the connections."""
        self._set_ready(False, "stopped")
        store, self._store = self._store, None
        if store is not None:
            await store.__aexit__(None, None, None)

    def _get_machine_id(self) -> str | None:
        return self._machine or getattr(self._organization, "machine_id", None)

    def _get_organization_id(self) -> str | None:
        return getattr(self._organization, "organization_id", None)

    async def upload_file(
        self,
        file_path: Path | str,
        machine_id: str | None = None,
        custom_filename: str | None = None,
        custom_s3_key: str | None = None,
    ) -> Result:
        """Check a flight log and store it: ``success``, ``s3_key``, ``url``, ``file_url``, ``size``.

        ``custom_s3_key`` is taken as it is; else the key is made of ``custom_filename`` or the file's name.
        ``machine_id`` may be given and must be ours.
        """

        async def upload(store: Store, machine: str) -> Result:
            path = Path(file_path)
            if machine_id is not None and machine_id != machine:
                raise Denied(f"Access denied: this machine is {machine}, not {machine_id}")
            found = await asyncio.to_thread(check_file, path, accept_documented=self._documented)
            name = custom_filename or path.name
            if custom_s3_key is not None:
                key = checked_key(custom_s3_key)
            else:
                key = make_key(self._template, machine=machine, name=name, prefix=self.upload_prefix)
            await self._require_free_or_ours(store, key, machine)
            metadata = {
                "original-filename": path.name.encode("ascii", "replace").decode(),
                "upload-timestamp": datetime.now(UTC).isoformat(),
                OWNER: machine,
            }
            size = await store.put(found, key, metadata)
            if size != found.size:
                raise BucketError(f"Upload failed: {size} of {found.size} bytes are stored")
            where = {"s3_key": key, "url": store.url(key), "file_url": store.url(key), "size": size}
            return {"success": True, "message": "File uploaded successfully", **where}

        return await self._answer("upload", upload)

    async def list_files(
        self, prefix: str | None = None, max_keys: int = 100, *, machine_id: str | None = None
    ) -> Result:
        """This machine's objects: ``files`` and ``objects``, each with key, size, last_modified, etag."""

        async def found(store: Store, machine: str) -> Result:
            if machine_id is not None and machine_id != machine:
                raise Denied(f"Access denied: this machine is {machine}, not {machine_id}")
            start = checked_prefix(prefix if prefix is not None else f"{machine}/")
            ours = await self._ours(store, await store.list(start, most=max_keys), machine)
            shown = [
                {
                    "key": one["Key"],
                    "size": one["Size"],
                    "last_modified": one["LastModified"].isoformat(),
                    "etag": one["ETag"].strip('"'),
                    "filename": one["Key"].rpartition("/")[2],
                    "file_url": store.url(one["Key"]),
                }
                for one in ours
            ]
            return {"success": True, "files": shown, "objects": shown, "total_count": len(shown), "prefix": start}

        return await self._answer("list", found)

    async def list_objects(self, prefix: str | None = None, max_keys: int = 1000) -> Result:
        """``list_files``, by its other name."""
        return await self.list_files(prefix, max_keys)

    async def download_file(self, s3_key: str, local_path: Path | str) -> Result:
        """Load an object into a file, which appears only when it is complete: ``success``, ``local_path``, ``size``."""

        async def download(store: Store, machine: str) -> Result:
            await self._require_ours(store, s3_key, machine)
            size = await store.get(s3_key, Path(local_path))
            return {"success": True, "local_path": str(local_path), "s3_key": s3_key, "size": size}

        return await self._answer("download", download)

    async def delete_file(self, s3_key: str) -> Result:
        """Delete an object."""

        async def delete(store: Store, machine: str) -> Result:
            await self._require_ours(store, s3_key, machine)
            await store.delete(s3_key)
            return {"success": True, "message": "File deleted successfully", "s3_key": s3_key}

        return await self._answer("delete", delete)

    async def move_file(self, source_key: str, dest_key: str) -> Result:
        """Give an object another key: copied first, deleted then."""

        async def move(store: Store, machine: str) -> Result:
            await self._require_ours(store, source_key, machine)
            await self._require_free_or_ours(store, checked_key(dest_key), machine)
            if source_key != dest_key:
                await store.copy(source_key, dest_key)
                await store.delete(source_key)
            return {"success": True, "source_key": source_key, "dest_key": dest_key, "url": store.url(dest_key)}

        return await self._answer("move", move)

    async def head_object(self, s3_key: str) -> Result:
        """What is known of an object: ``exists``, size, times, metadata."""

        async def head(store: Store, machine: str) -> Result:
            told = await self._require_ours(store, s3_key, machine)
            return {
                "success": True,
                "exists": True,
                "s3_key": s3_key,
                "size": told["ContentLength"],
                "last_modified": told["LastModified"].isoformat(),
                "content_type": told.get("ContentType"),
                "etag": told["ETag"].strip('"'),
                "metadata": told.get("Metadata", {}),
            }

        return await self._answer("head", head)

    async def _answer(self, what: str, call: Callable[[Store, str], Awaitable[Result]]) -> Result:
        store, machine = self._store, self._get_machine_id()
        if store is None:
            return error_result(f"the bucket cannot be used: {self.reason}", 503, success=False)
        if not machine:
            return error_result("the bucket cannot be used: the machine id is not known", 503, success=False)
        try:
            return await call(store, machine)
        except BucketError as error:
            log.warning("%s failed: %s", what, error)
            return error_result(str(error), error.status, success=False)

    async def _require_ours(self, store: Store, key: str, machine: str) -> dict[str, Any]:
        """The object's head, when the object is ours. Raises Denied, NotThere."""
        told = None
        if not names_machine(checked_key(key), machine, self.upload_prefix):
            try:
                told = await store.head(key)
            except NotThere:
                raise Denied(f"Access denied: {key!r} is not of this machine") from None
            if told.get("Metadata", {}).get(OWNER) != machine:
                raise Denied(f"Access denied: {key!r} is not of this machine")
        return told if told is not None else await store.head(key)

    async def _require_free_or_ours(self, store: Store, key: str, machine: str) -> None:
        """Nothing of another machine is ever overwritten. Raises Denied."""
        if names_machine(key, machine, self.upload_prefix):
            return
        try:
            told = await store.head(key)
        except NotThere:
            return
        if told.get("Metadata", {}).get(OWNER) != machine:
            raise Denied(f"Access denied: {key!r} is of another machine")

    async def _ours(self, store: Store, found: list[dict[str, Any]], machine: str) -> list[dict[str, Any]]:
        at_once = asyncio.Semaphore(HEADS_AT_ONCE)

        async def is_ours(key: str) -> bool:
            if names_machine(key, machine, self.upload_prefix):
                return True
            async with at_once:
                try:
                    told = await store.head(key)
                except NotThere:
                    return False
            return bool(told.get("Metadata", {}).get(OWNER) == machine)

        keep = await asyncio.gather(*(is_ours(one["Key"]) for one in found))
        return [one for one, ours in zip(found, keep, strict=True) if ours]
