"""``/bucket/...``: flight logs over HTTP. Loads FastAPI.

POST upload -> spool file -> the proxy -> a record for the bucket handler; the rest is asked of the store.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from email.utils import format_datetime
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.routing import APIRoute
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.requests import ClientDisconnect

from petalbus.daemon.http import bucket_ranges as ranges
from petalbus.daemon.http.bucket_form import Form
from petalbus.daemon.http.bucket_spool import Spool, Spooled
from petalbus.daemon.http.errors import BODY, Refused
from petalbus.handlers.bucket.errors import Away, BucketError
from petalbus.handlers.bucket.files import ALLOWED, MAX_BYTES, check_extension, check_size
from petalbus.handlers.bucket.names import checked_key
from petalbus.petals.proxies.bucket import running

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from petalbus.handlers.bucket.reading import Reading
    from petalbus.petals.proxies.bucket.proxy import S3BucketProxy

GetBucket = Callable[[Request], "S3BucketProxy | None"]
"""Gives the proxy of a request; None while there is none."""

_Present = Callable[[Request], "S3BucketProxy"]

UPLOADS_AT_ONCE: Final = 4
DOWNLOADS_AT_ONCE: Final = 6
"""Each holds a connection to the store as long as its client reads."""

WAIT_S: Final = 10.0
UNREAD_S: Final = 60.0
"""A client that takes nothing of its download for so long is left."""

MAX_NAME_BYTES: Final = 200
_SENT_BYTES: Final = 32 * 1024
"""At once, so that a slow client is seen to take something."""

_FORM_BYTES: Final = 64 * 1024
_ABSENT: Final = "no bucket proxy runs in this process: make an S3BucketProxy and start it"
_NAME_HEADER: Final = "x-filename"

_log = logging.getLogger(__name__)
_given: list[logging.Logger] = []


class _Key(PathConvertor):
    """All that follows, line feeds too: what is no key is refused as one, and not as an address that is not there."""

    regex = r"[\s\S]*\Z"


register_url_convertor("bucket_key", _Key())


class _Route(APIRoute):
    """Answers errors as the proxy does, also in apps of others."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]  # FastAPI says Coroutine
        handle = super().get_route_handler()

        async def answered(request: Request) -> Response:
            try:
                return await handle(request)
            except BucketError as error:
                return _refused(error.status, str(error))
            except Refused as error:
                return _refused(error.status_code, error.detail, error.headers)
            except ClientDisconnect:
                return _refused(400, "the upload ended before its end")

        return answered


_BODY: Final = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "custom_filename": {"type": "string"},
                        "custom_s3_key": {"type": "string"},
                    },
                }
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
Text = Annotated[str | None, Query(max_length=4096)]


def set_logger(logger: logging.Logger) -> None:
    """Whose log lines ours shall be; it needs no handler."""
    _given[:] = [logger]


def bucket_router(
    bucket: GetBucket, *, spool: Spool | None = None, absent: Callable[[], str] = lambda: _ABSENT
) -> APIRouter:
    """The routes, without a prefix.

    ``spool``: where uploads wait; one of this process's own where none is given. ``absent``: what is said while
    there is no proxy.
    """
    router = APIRouter(tags=["bucket"], route_class=_Route)

    def present(request: Request) -> S3BucketProxy:
        if (found := bucket(request)) is None:
            raise Away(absent())
        return found

    taker = _Taker(present, spool or Spool())
    router.post("/upload", response_model=None, openapi_extra=_BODY, summary="Store a flight log")(taker.upload)
    _add_reading(router, present)
    _add_about(router, present, taker.spool)
    return router


def _of_this_process(request: Request) -> S3BucketProxy | None:
    """The bucket among the proxies of the app, else the one that was started last in this process."""
    proxies = getattr(request.app.state, "proxies", None)
    found: S3BucketProxy | None = proxies.get("bucket") if isinstance(proxies, Mapping) else None
    return found or running.latest()


class _Taker:
    """Takes uploads."""

    def __init__(self, bucket: _Present, spool: Spool) -> None:
        self.spool = spool
        self._bucket = bucket
        self._turns = asyncio.Semaphore(UPLOADS_AT_ONCE)

    async def upload(
        self,
        request: Request,
        filename: Text = None,
        custom_filename: Text = None,
        custom_s3_key: Text = None,
        wait: Annotated[float, Query(ge=0, le=300, description="seconds to wait for a store that is away")] = WAIT_S,
    ) -> Response:
        """A `.ulg` or `.bag` file: the field `file` of a form, or the body itself with its name in `filename`.

        200: it is stored. 202: it waits here for the store (`upload_id`), and goes by itself.
        """
        proxy = self._bucket(request)
        if (body := request.scope.get(BODY)) is not None:
            body.limit = MAX_BYTES + _FORM_BYTES + 1  # what is larger is refused below, in our words
        if self._turns.locked():
            raise Refused(503, "busy", f"{UPLOADS_AT_ONCE} uploads come in just now: try again", {"Retry-After": "5"})
        async with self._turns:
            one = await self._take(proxy, request, filename, custom_filename, custom_s3_key)
        return _answer(await self.spool.upload(proxy, one, patience=wait))

    async def _take(
        self, proxy: S3BucketProxy, request: Request, filename: str | None, renamed: str | None, s3_key: str | None
    ) -> Spooled:
        """Write what comes to the disk. Raises BucketError, Refused."""
        declared = request.headers.get("content-length", "")
        size = int(declared) if declared.isdigit() else None
        room = size or 0
        pieces = request.stream().__aiter__()
        data: AsyncIterator[bytes] = pieces
        content_type = request.headers.get("content-type", "")
        if content_type.lower().startswith("multipart/form-data"):
            if size is not None and size > MAX_BYTES + _FORM_BYTES:
                check_size(size)
            form = Form(pieces, content_type)
            filename = await form.to_file()
            renamed = renamed or form.fields.get("custom_filename")
            s3_key = s3_key or form.fields.get("custom_s3_key")
            data, room, size = form.data(), size or 0, None
        name = _plain_name(filename or request.headers.get(_NAME_HEADER) or "")
        told = await proxy.may_store(s3_key)
        if not told["success"]:
            raise Refused(told["status"], "refused", told["error"])
        more = {"custom_filename": renamed or "", "custom_s3_key": s3_key or ""}
        return await self.spool.receive(name, data, size=size, room=room, documented=proxy.documented_magic, more=more)


def _plain_name(given: str) -> str:
    """The last part of a file's name, as browsers and others send it. Raises BucketError, Refused."""
    name = re.split(r"[/\\]", given)[-1]
    if not name:
        text = f"the file has no name: give ?filename=..., or the header {_NAME_HEADER.title()}"
        raise Refused(422, "no_name", text)
    check_extension(name)
    if len(checked_key(name).encode()) > MAX_NAME_BYTES:
        raise Refused(400, "name_too_long", f"the file's name has more than {MAX_NAME_BYTES} bytes")
    return name


def _add_reading(router: APIRouter, bucket: _Present) -> None:
    turns = asyncio.Semaphore(DOWNLOADS_AT_ONCE)

    @router.head("/download/{s3_key:bucket_key}", response_model=None, include_in_schema=False)
    @router.get("/download/{s3_key:bucket_key}", response_model=None)
    async def download(request: Request, s3_key: str) -> Response:
        """The bytes of a log of this machine. `Range`, `If-Range` and `If-None-Match` are known."""
        told = await bucket(request).open_file(s3_key)
        if not told["success"]:
            return _answer(told)
        body: Reading = told["body"]
        etag, headers = f'"{told["etag"]}"', _headers(told)
        if ranges.matches(request.headers.get("if-none-match"), etag):
            return Response(status_code=304, headers=headers)
        wanted = ranges.asked_for(request.headers, told["size"], etag)
        if wanted is ranges.NOTHING:
            reply = _refused(416, f"{s3_key} has {told['size']} bytes: none of those that were asked for")
            reply.headers["content-range"] = f"bytes */{told['size']}"
            return reply
        first, last = wanted or (0, told["size"] - 1)
        headers["content-length"] = str(last - first + 1)
        if wanted is not None:
            headers["content-range"] = f"bytes {first}-{last}/{told['size']}"
        status, kind = 206 if wanted is not None else 200, told["content_type"] or "application/octet-stream"
        if request.method == "HEAD":
            return Response(status_code=status, headers=headers, media_type=kind)
        told = {"status_code": status, "headers": headers, "media_type": kind}
        return _Download(body, (first, last), turns, s3_key, **told)

    @router.delete("/delete/{s3_key:bucket_key}", response_model=None)
    async def delete(request: Request, s3_key: str) -> Response:
        """Delete a log of this machine."""
        return _answer(await bucket(request).delete_file(s3_key))


def _add_about(router: APIRouter, bucket: _Present, spool: Spool) -> None:
    @router.get("/list", response_model=None)
    async def listed(
        request: Request,
        prefix: Annotated[str | None, Query(description="the beginning of keys; this machine's when none")] = None,
        max_keys: Annotated[int, Query(ge=1, le=10_000)] = 100,
    ) -> Response:
        """Logs of this machine."""
        return _answer(await bucket(request).list_files(prefix, max_keys))

    @router.get("/info", response_model=None)
    async def info(request: Request) -> Response:
        """Where logs go, who we are, what is taken, and what waits."""
        proxy = bucket(request)
        return JSONResponse(
            {
                "success": True,
                "status": "ready" if proxy.is_ready else "not ready",
                "reason": proxy.reason,
                "bucket_name": proxy.bucket_name,
                "region": proxy.region,
                "upload_prefix": proxy.upload_prefix,
                "machine_id": proxy._get_machine_id(),  # petals' own name for it
                "organization_id": proxy._get_organization_id(),  # the same
                "allowed_extensions": sorted(ALLOWED),
                "max_file_size": MAX_BYTES - 1,
                "spool": spool.describe(),
            }
        )


class _Download(StreamingResponse):
    """A log as it comes. It has its turn, and its connection to the store, only while it is sent."""

    def __init__(self, body: Reading, wanted: tuple[int, int], turns: asyncio.Semaphore, key: str, **told: Any) -> None:
        super().__init__(_streamed(body, key), **told)
        self._reading = body
        self._wanted = wanted
        self._turns = turns

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, or why not. Raises BucketError where the store breaks off, ClientDisconnect."""

        async def patient(message: Message) -> None:
            async with asyncio.timeout(UNREAD_S):  # its TimeoutError is one of OSError: Starlette takes it so
                await send(message)

        if self._turns.locked():
            text = f"{DOWNLOADS_AT_ONCE} logs are loaded just now: try again"
            await _refused(503, text, {"Retry-After": "5"})(scope, receive, send)
            return
        async with self._turns:
            try:
                await self._reading.begin(*self._wanted)
            except BucketError as error:
                await _refused(error.status, str(error))(scope, receive, send)
                return
            try:
                await super().__call__(scope, receive, patient)
            finally:
                self._reading.close()


async def _streamed(body: Reading, s3_key: str) -> AsyncIterator[bytes]:
    try:
        async for piece in body:
            for at in range(0, len(piece), _SENT_BYTES):
                yield piece[at : at + _SENT_BYTES]
    except BucketError as error:
        # the head is out: the answer ends early, which its length tells
        (_given or [_log])[0].warning("the download of %s broke off: %s", s3_key, error)
        raise
    finally:
        body.close()


def _headers(told: dict[str, Any]) -> dict[str, str]:
    name = quote(str(told["s3_key"]).rpartition("/")[2], safe="")
    return {
        "etag": f'"{told["etag"]}"',
        "accept-ranges": "bytes",
        "last-modified": format_datetime(ranges.parsed(told["last_modified"]), usegmt=True),
        "content-disposition": f"attachment; filename*=UTF-8''{name}",
        "cache-control": "private, no-cache",
        "x-content-type-options": "nosniff",
    }


def _answer(told: dict[str, Any]) -> Response:
    """An answer of the proxy's as HTTP."""
    if told["success"]:
        return JSONResponse(told)
    status = int(told.get("status", 500))
    more = {name: told[name] for name in ("upload_id", "queued") if name in told}
    if told.get("queued"):
        text = "the log has come and waits for the store: it goes by itself"
        return JSONResponse({"success": True, "message": text, "reason": told["error"], **more}, 202)
    return _refused(status if 400 <= status < 600 else 500, str(told["error"]), **more)


def _refused(status: int, text: str, headers: Any = None, **more: Any) -> JSONResponse:
    """An error in both shapes: ``detail``, as HTTP has it here; ``error`` and ``status``, as proxies answer."""
    (_given or [_log])[0].info("bucket: %d %s", status, text)
    return JSONResponse({"detail": text, "error": text, "status": status, "success": False, **more}, status, headers)


router = bucket_router(_of_this_process)
"""For apps of others, with a prefix of theirs."""
