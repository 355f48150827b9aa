"""One bucket of an S3-compatible store: put, get, head, list, copy, delete, each with its error in our words."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from petalbus.handlers.bucket.credentials import credentials
from petalbus.handlers.bucket.errors import Away, BucketError, Denied, FileRefused, NotThere
from petalbus.handlers.bucket.files import FlightLog, unchanged

if TYPE_CHECKING:
    from types import TracebackType

PART_BYTES: Final = 8 * 1024 * 1024
PARTS_AT_ONCE: Final = 2
CHUNK_BYTES: Final = 256 * 1024
MAX_LISTED: Final = 10_000

_EXPIRED: Final = ("ExpiredToken", "ExpiredTokenException", "RequestExpired", "InvalidToken")
_MISSING: Final = ("404", "NoSuchKey", "NotFound")
_REFUSED: Final = ("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", *_EXPIRED)


class Store:
    """Use it as ``async with Store(...)``; nothing is sent before the first call."""

    def __init__(
        self,
        bucket: str,
        *,
        token_url: str,
        region: str = "us-east-1",
        endpoint: str | None = None,
        timeout: float = 30.0,
    ) -> None:
        """``endpoint``: the store's URL; None for AWS. ``timeout``: seconds for one request."""
        self.bucket = bucket
        self.region = region
        self.endpoint = endpoint
        self._timeout = timeout
        self._credentials = credentials(token_url, timeout=timeout)
        self._stack = AsyncExitStack()
        self._client: Any = None
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()
        self._client = None

    def url(self, key: str) -> str:
        """Where an object is, for people; reading it needs credentials."""
        if self.endpoint:
            return f"{self.endpoint.rstrip('/')}/{self.bucket}/{key}"
        return f"https://{self.bucket}.s3.{self.region}.amazonaws.com/{key}"

    async def put(self, log: FlightLog, key: str, metadata: dict[str, str]) -> int:
        """Store a file, whole or not at all; its size in the store. Raises BucketError."""
        options = {"Key": key, "ContentType": log.content_type, "Metadata": metadata, "ServerSideEncryption": "AES256"}
        if log.size <= PART_BYTES:
            body = await asyncio.to_thread(log.path.read_bytes)
            await _require_unchanged(log)
            await self._call("put_object", Body=body, **options)
        else:
            await self._put_parts(log, options)
        return int((await self.head(key))["ContentLength"])

    async def get(self, key: str, path: Path) -> int:
        """Load an object into a file, which appears only when it is complete; its size. Raises BucketError."""
        answer = await self._call("get_object", Key=key)
        part = path.with_name(f"{path.name}.part")
        await asyncio.to_thread(path.parent.mkdir, parents=True, exist_ok=True)
        size = 0
        try:
            async with answer["Body"] as body:
                with await asyncio.to_thread(part.open, "wb") as file:
                    while chunk := await body.read(CHUNK_BYTES):
                        size += await asyncio.to_thread(file.write, chunk)
                    await asyncio.to_thread(os.fsync, file.fileno())
            _require(size == int(answer["ContentLength"]), f"{size} of {answer['ContentLength']} bytes came")
            await asyncio.to_thread(part.replace, path)
        except BaseException:
            await asyncio.to_thread(part.unlink, missing_ok=True)
            raise
        return size

    async def head(self, key: str) -> dict[str, Any]:
        """What the store knows of an object. Raises NotThere, BucketError."""
        return await self._call("head_object", Key=key)

    async def copy(self, source: str, target: str) -> None:
        """Copy an object with its metadata. Raises BucketError."""
        await self._call("copy_object", Key=target, CopySource={"Bucket": self.bucket, "Key": source})

    async def delete(self, key: str) -> None:
        """Delete an object; one that is not there is no error. Raises BucketError."""
        await self._call("delete_object", Key=key)

    async def list(self, prefix: str, *, most: int = 1000) -> list[dict[str, Any]]:
        """Up to ``most`` objects (10,000 at most) below a prefix. Raises BucketError."""
        found: list[dict[str, Any]] = []
        more: dict[str, str] = {}
        most = min(most, MAX_LISTED)
        while len(found) < most:
            ask = min(1000, most - len(found))
            answer = await self._call("list_objects_v2", Prefix=prefix, MaxKeys=ask, **more)
            found += answer.get("Contents", [])
            if not answer.get("IsTruncated"):
                break
            more = {"ContinuationToken": answer["NextContinuationToken"]}
        return found[:most]

    async def _put_parts(self, log: FlightLog, options: dict[str, Any]) -> None:
        key = options["Key"]
        upload = (await self._call("create_multipart_upload", **options))["UploadId"]
        at_once = asyncio.Semaphore(PARTS_AT_ONCE)
        numbers = range(1, -(-log.size // PART_BYTES) + 1)
        try:
            with await asyncio.to_thread(log.path.open, "rb") as file:

                async def send(number: int) -> dict[str, Any]:
                    async with at_once:
                        start = (number - 1) * PART_BYTES
                        body = await asyncio.to_thread(os.pread, file.fileno(), PART_BYTES, start)
                        told = await self._call("upload_part", Key=key, UploadId=upload, PartNumber=number, Body=body)
                        return {"PartNumber": number, "ETag": told["ETag"]}

                async with asyncio.TaskGroup() as tasks:
                    parts = [tasks.create_task(send(number), name=f"upload-part-{number}") for number in numbers]
            await _require_unchanged(log)
            done = {"Parts": [part.result() for part in parts]}
            await self._call("complete_multipart_upload", Key=key, UploadId=upload, MultipartUpload=done)
        except BaseException as error:
            await asyncio.shield(self._give_up(key, upload))
            if isinstance(error, BaseExceptionGroup):
                raise next((one for one in error.exceptions if isinstance(one, BucketError)), error) from None
            raise

    async def _give_up(self, key: str, upload: str) -> None:
        try:
            await self._call("abort_multipart_upload", Key=key, UploadId=upload)
        except BucketError:
            return  # the store forgets it by its own rules

    async def _call(self, name: str, **arguments: Any) -> dict[str, Any]:
        """One request. Credentials that have run out are fetched anew once, and it is sent again: it did nothing."""
        client = await self._connected()
        call: Callable[..., Awaitable[dict[str, Any]]] = getattr(client, name)
        arguments["Bucket"] = self.bucket
        try:
            async with _translated(arguments.get("Key", "")):
                return await call(**arguments)
        except _Expired:
            self._credentials._expiry_time = None  # the library has no call for "fetch anew"
            async with _translated(arguments.get("Key", ""), last=True):
                return await call(**arguments)

    async def _connected(self) -> Any:
        async with self._turn:
            if self._client is None:
                from aiobotocore.config import AioConfig  # noqa: PLC0415  # takes long to import
                from aiobotocore.session import get_session  # noqa: PLC0415  # the same

                session: Any = await asyncio.to_thread(get_session)
                session._credentials = self._credentials  # the library's own recipe
                config = AioConfig(
                    connect_timeout=self._timeout,
                    read_timeout=self._timeout,
                    retries={"max_attempts": 3, "mode": "standard"},
                    s3={"addressing_style": "path" if self.endpoint else "auto"},
                    **({} if self.endpoint is None else _PLAIN_BODIES),
                )
                made = session.create_client("s3", region_name=self.region, endpoint_url=self.endpoint, config=config)
                self._client = await self._stack.enter_async_context(made)
            return self._client


def _require(complete: bool, what: str) -> None:  # noqa: FBT001  # a condition
    if not complete:
        raise BucketError(f"Download failed: {what}")


async def _require_unchanged(log: FlightLog) -> None:
    if not await asyncio.to_thread(unchanged, log):
        raise FileRefused(f"File validation failed: {log.path} changed while it was read")


_PLAIN_BODIES: Final = {
    # stores that are not AWS's own refuse the trailers with checksums, or store them as if they were data
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
}


class _Expired(Denied):
    """The credentials have run out."""


@asynccontextmanager
async def _translated(key: str, *, last: bool = False) -> AsyncIterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415  # loaded with the client by now

    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _MISSING:
            raise NotThere(f"File not found: {key}") from error
        if code in _EXPIRED and not last:
            raise _Expired("Authentication failed: the credentials have run out") from error
        if code in _REFUSED:
            raise Denied(f"Access denied by the store ({code}): {key}") from error
        raise BucketError(f"the store answered {code}: {error.response.get('Error', {}).get('Message', '')}") from error
    except (BotoCoreError, OSError, TimeoutError) as error:
        raise Away(f"the store cannot be reached: {type(error).__name__}") from error
