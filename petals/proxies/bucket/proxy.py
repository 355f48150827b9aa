"""The bucket proxy: flight logs are stored, found, moved and deleted, each machine only its own.

On a bus an upload is a record for the daemon's bucket handler (``uploads``); what reads and deletes is asked of the
store from here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from petalbus.daemon.bus.errors import BusError
from petalbus.handlers.bucket.errors import Away, BucketError, Denied
from petalbus.handlers.bucket.files import ALLOWED, check_file
from petalbus.handlers.bucket.names import TEMPLATE, checked_key, checked_prefix, checked_template, make_key, may_repeat
from petalbus.handlers.bucket.owner import OWNER, Owner
from petalbus.handlers.bucket.reading import Reading, load
from petalbus.handlers.bucket.store import ENCRYPTION, Occupied, Store
from petalbus.handlers.bucket.transfer import options_of, put
from petalbus.petals.proxies.base import BaseProxy
from petalbus.petals.proxies.bucket import running
from petalbus.petals.proxies.bucket.uploads import OnProgress, Uploads
from petalbus.petals.proxies.errors import ProxyNotReady, error_result
from petalbus.schemas.stamps import new_id
from petalbus.schemas.vocabulary import Priority, Status

log = logging.getLogger("S3BucketProxy")

Result = dict[str, Any]

_ASK_S = 10.0
"""How long somebody who wants to upload waits for the store to say whose a key is."""


class S3BucketProxy(BaseProxy):
    """Every call answers a dict: with ``success``, or ``{"error": text, "status": number}``.

    ``key_template``: how a key is made where none is given. ``documented_magic``: also accept logs that begin with
    ``ULogData``. ``encryption``: what the store is asked for. ``url``, ``bus``: the bus whose daemon uploads; without
    one this process does. Nothing is sent before the first call.
    """

    kind: ClassVar[str] = "bucket"
    ALLOWED_EXTENSIONS: ClassVar[frozenset[str]] = ALLOWED

    def __init__(  # noqa: PLR0913  # petals' own signature, and where the bus is
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
        encryption: str = ENCRYPTION,
        machine_id: str | None = None,
        organization: Any = None,
        url: str | None = None,
        bus: str = "petalbus",
        app_id: str = "petal-app-manager.bucket",
    ) -> None:
        super().__init__()
        self.session_token_url = session_token_url
        self.bucket_name = bucket_name
        self.upload_prefix = upload_prefix
        self.region = region
        self._endpoint = endpoint
        self._timeout = request_timeout
        self._template = checked_template(key_template)
        self.documented_magic = documented_magic
        self._encryption = encryption
        self._machine = machine_id
        self._organization = organization
        self._store: Store | None = None
        self._uploads = Uploads(url, bus=bus, app=app_id) if url is not None else None
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
            encryption=self._encryption,
        )
        self._set_ready(True)
        running.began(self)

    async def stop(self) -> None:
        """Close the connections."""
        self._set_ready(False, "stopped")
        running.ended(self)
        store, self._store = self._store, None
        if self._uploads is not None:
            await self._uploads.close()
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
        *,
        upload_id: str | None = None,
        priority: Priority | int = Priority.NORMAL,
        patience: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Result:
        """Check a flight log and store it: ``success``, ``s3_key``, ``url``, ``file_url``, ``size``.

        ``custom_s3_key`` is taken as it is; else the key is made of ``custom_filename`` or the file's name.
        ``machine_id`` may be given and must be ours. ``on_progress``: a plain function, called with ``bytes``,
        ``total``, ``rate`` (bytes a second) and ``state``. When the store is away (or the upload paused) for
        ``patience`` seconds, the request timeout when not given, the answer is an error with status 503 and
        ``upload_id``; the daemon goes on by itself, and the same call waits for it again.
        """

        async def upload(store: Store, machine: str) -> Result:
            order = await self._order(machine, file_path, machine_id, custom_filename, custom_s3_key)
            if (uploads := await self._serving()) is not None:
                return await uploads.upload(
                    order,
                    id=upload_id,
                    priority=priority,
                    patience=self._timeout if patience is None else patience,
                    on_progress=on_progress,
                )
            return await self._upload_here(store, machine, order)

        return await self._answer("upload", upload)

    async def upload_later(
        self,
        file_path: Path | str,
        custom_filename: str | None = None,
        custom_s3_key: str | None = None,
        *,
        upload_id: str | None = None,
        priority: Priority | int = Priority.NORMAL,
        deadline: float | None = None,
    ) -> str:
        """Hand a flight log over to the daemon, which stores it when it can; the upload's id, when that is durable.

        ``deadline``: seconds after which it is given up; after a restart of the machine it counts as passed. Raises
        BucketError when it is no flight log, ProxyNotReady without a bus, BusError.
        """
        self._require_ready()
        machine = self._get_machine_id() or ""
        if self._uploads is None:
            raise ProxyNotReady("upload_later needs a bus: this proxy was made without one")
        order = await self._order(machine, file_path, None, custom_filename, custom_s3_key)
        return await self._uploads.send(order, id=upload_id, priority=priority, deadline=deadline)

    async def _order(
        self,
        machine: str,
        file_path: Path | str,
        machine_id: str | None,
        custom_filename: str | None,
        custom_s3_key: str | None,
    ) -> dict[str, Any]:
        """What the record says. Raises BucketError: what can be seen now is told now."""
        path = Path.cwd() / file_path  # looks at no file
        if machine_id is not None and machine_id != machine:
            raise Denied(f"Access denied: this machine is {machine}, not {machine_id}")
        await asyncio.to_thread(check_file, path, accept_documented=self.documented_magic)
        told: dict[str, Any] = {"path": str(path), "template": self._template, "prefix": self.upload_prefix}
        if custom_s3_key is not None:
            told["s3_key"] = checked_key(custom_s3_key)
        if custom_filename:
            told["filename"] = custom_filename
        if self.documented_magic:
            told["documented_magic"] = True
        return told

    async def _upload_here(self, store: Store, machine: str, order: dict[str, Any]) -> Result:
        """Store it from this process, now or not at all."""
        path = Path(order["path"])
        name = order.get("filename") or path.name
        make = partial(make_key, self._template, machine=machine, name=name, prefix=self.upload_prefix)
        key = order.get("s3_key") or make()
        found = await asyncio.to_thread(check_file, path, accept_documented=self.documented_magic)
        await Owner(store, machine, self.upload_prefix).free_or_ours(key)
        upload = new_id() if "s3_key" not in order and may_repeat(self._template) else None
        try:
            size = await put(store, found, key, options_of(found, machine), prefix=self.upload_prefix, upload=upload)
        except Occupied:
            key = make(apart=True)
            size = await put(store, found, key, options_of(found, machine), prefix=self.upload_prefix, upload=upload)
        where: Result = {"s3_key": key, "url": store.url(key), "file_url": store.url(key), "size": size}
        if found.indexed is not None:
            where["indexed"] = found.indexed
        return {"success": True, "message": "File uploaded successfully", **where}

    async def list_files(
        self, prefix: str | None = None, max_keys: int = 100, *, machine_id: str | None = None
    ) -> Result:
        """This machine's objects: ``files`` and ``objects``, each with key, size, last_modified, etag.

        ``max_keys``: how many at most; ``truncated`` in the answer says that there are more.
        """

        async def found(store: Store, machine: str) -> Result:
            if machine_id is not None and machine_id != machine:
                raise Denied(f"Access denied: this machine is {machine}, not {machine_id}")
            start = checked_prefix(prefix if prefix is not None else f"{machine}/")
            ours, more = await self._owner(store, machine).listed(start, max_keys)
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
            told = {"files": shown, "objects": shown, "total_count": len(shown), "truncated": more}
            return {"success": True, **told, "prefix": start}

        return await self._answer("list", found)

    async def list_objects(self, prefix: str | None = None, max_keys: int = 1000) -> Result:
        """``list_files``, by its other name."""
        return await self.list_files(prefix, max_keys)

    async def download_file(self, s3_key: str, local_path: Path | str) -> Result:
        """Load an object into a file, which appears only when it is complete: ``success``, ``local_path``, ``size``."""

        async def download(store: Store, machine: str) -> Result:
            told = await self._owner(store, machine).ours(s3_key)
            size = await load(store, s3_key, told, local_path)
            return {"success": True, "local_path": str(local_path), "s3_key": s3_key, "size": size}

        return await self._answer("download", download)

    async def delete_file(self, s3_key: str) -> Result:
        """Delete an object."""

        async def delete(store: Store, machine: str) -> Result:
            await self._owner(store, machine).ours(s3_key)
            await store.delete(s3_key)
            return {"success": True, "message": "File deleted successfully", "s3_key": s3_key}

        return await self._answer("delete", delete)

    async def move_file(self, source_key: str, dest_key: str) -> Result:
        """Give an object another key: copied first, deleted then."""

        async def move(store: Store, machine: str) -> Result:
            owner = self._owner(store, machine)
            told = await owner.ours(source_key)
            await owner.free_or_ours(checked_key(dest_key))
            if source_key != dest_key:
                # what an earlier program has stored may not say whose it is: its key has said so until now
                await store.copy(source_key, dest_key, told, {OWNER: machine})
                if not await owner.is_ours(dest_key):
                    raise BucketError(f"the store has not kept whose {dest_key!r} is; {source_key!r} stays")
                await store.delete(source_key)
            return {"success": True, "source_key": source_key, "dest_key": dest_key, "url": store.url(dest_key)}

        return await self._answer("move", move)

    async def head_object(self, s3_key: str) -> Result:
        """What is known of an object: ``exists``, size, times, metadata."""

        async def head(store: Store, machine: str) -> Result:
            told = await self._owner(store, machine).ours(s3_key)
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

    async def open_file(self, s3_key: str) -> Result:
        """``head_object``, and ``body``: the bytes as they come, see ``Reading``."""
        told, store = await self.head_object(s3_key), self._store
        if told["success"] and store is not None:
            told["body"] = Reading(store, s3_key, size=told["size"], etag=told["etag"])
        return told

    async def may_store(self, s3_key: str | None = None) -> Result:
        """Whether a log may be stored, under this key: what ``upload_file`` would say before it looks at the file.

        While the store is away it may be, where a daemon stores it later: then that looks whose the key is.
        """

        async def ask(store: Store, machine: str) -> Result:
            owner = self._owner(store, machine)
            if s3_key is None:
                return {"success": True}
            owner.require_not_others(s3_key)
            try:
                async with asyncio.timeout(_ASK_S):
                    await owner.free_or_ours(s3_key)
            except BucketError as error:
                if not error.passes or await self._serving() is None:
                    raise
            except TimeoutError:
                if await self._serving() is None:
                    raise Away("the store does not answer") from None
            return {"success": True}

        return await self._answer("upload", ask)

    async def upload_status(self, upload_id: str) -> Status | None:
        """Where an upload's record stands; None where no daemon carries uploads out. Raises BusError."""
        uploads = await self._serving()
        return None if uploads is None else await uploads.status(upload_id)

    async def _serving(self) -> Uploads | None:
        """The way to a daemon that stores what is uploaded; None where this process does. Raises BusError."""
        return self._uploads if self._uploads is not None and await self._uploads.served() else None

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
        except BusError as error:
            log.warning("%s failed: %s", what, error)
            return error_result(f"{what} failed: {error}", 503, success=False)
        except (OSError, ValueError, TypeError) as error:  # such as a path that is none: callers compare a dict
            log.warning("%s failed: %s", what, error, exc_info=True)
            return error_result(f"{what} failed: {type(error).__name__}: {error}", 400, success=False)

    def _owner(self, store: Store, machine: str) -> Owner:
        return Owner(store, machine, self.upload_prefix)
