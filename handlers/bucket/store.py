"""One bucket of an S3-compatible store: every call that it needs, each with its error in our words."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from petalbus.handlers.bucket.answers import BARE, Expired, NotTaken, Occupied, Taken, about_encryption, translated
from petalbus.handlers.bucket.body import Body, moving
from petalbus.handlers.bucket.errors import NotEncrypted, NotThere, Unsupported

if TYPE_CHECKING:
    from types import TracebackType

    from petalbus.handlers.bucket.credentials import Credentials
    from petalbus.handlers.bucket.kept import KeptCredentials

__all__ = ["Begun", "Occupied", "Part", "Sent", "Store", "Taken", "etag_is_md5"]

T = TypeVar("T")

PART_BYTES: Final = 8 * 1024 * 1024
CHUNK_BYTES: Final = 256 * 1024
MAX_LISTED: Final = 10_000
CONNECT_SECONDS: Final = 10.0
CONNECTIONS: Final = 32
"""At once: a download holds one as long as it lasts, and the others must not wait for that."""

ENCRYPTION: Final = "AES256"
NO_ENCRYPTION: Final = "none"
"""Nothing is asked for: the store does as it is set up."""

NOT_ENCRYPTED_S: Final = 300.0
"""A store that does not encrypt is not asked again for so long: each time a whole log may be sent in vain."""

DOUBTED_AFTER: Final = 10.0
"""Credentials younger than so many seconds have not run out: then such an answer means what it says."""


_COPIED: Final = ("ContentType", "CacheControl", "ContentDisposition", "ContentEncoding", "ContentLanguage")
"""What an object has beside its metadata, and loses when that is replaced."""

_KEPT_SO: Final = ("ServerSideEncryption", "SSEKMSKeyId", "StorageClass")
"""How it is kept: no copy has these by itself."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sent:
    """What the store says of bytes that it has taken. ``md5``: it is that of the bytes, where the store says it."""

    etag: str
    md5: bool


@dataclass(frozen=True, slots=True)
class Part:
    """A part that the store has. ``etag`` without quotes."""

    number: int
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class Begun:
    """A multipart upload that has begun and not ended. ``since``: the store's time."""

    key: str
    upload: str
    since: datetime


class Store:
    """Use it as ``async with Store(...)``; nothing is sent, and nothing large is imported, before the first call."""

    def __init__(
        self,
        bucket: str,
        *,
        token_url: str,
        region: str = "us-east-1",
        endpoint: str | None = None,
        timeout: float = 30.0,
        attempts: int = 3,
        encryption: str = ENCRYPTION,
        kept: KeptCredentials | None = None,
    ) -> None:
        """``endpoint``: the store's URL; None for AWS. ``timeout``: seconds for an answer. ``attempts``: of a call.

        ``encryption``: what is asked for (AES256, aws:kms, none). ``kept``: a file of credentials.
        """
        self.bucket = bucket
        self.region = region
        self.endpoint = endpoint
        self._token_url = token_url
        self._timeout = timeout
        self._attempts = attempts
        self._encryption = encryption
        self._not_encrypted: dict[str, tuple[float, str]] = {}
        self._kept = kept
        self._credentials: Credentials | None = None
        self._stack = AsyncExitStack()
        self._client: Any = None
        self._conditions = True
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

    async def put(self, key: str, body: Body, options: Mapping[str, Any], *, md5: str, new: bool = False) -> Sent:
        """Store an object in one request. ``md5``: of the body, in base64. Raises BucketError.

        ``new``: only where there is none yet, which not all stores can; raises Taken.
        """

        async def once(**more: str) -> Sent:
            body.seek(0)
            call = self._encrypted("put_object", Key=key, Body=body, ContentMD5=md5, **options, **more)
            return _sent(await moving(call, body))

        return await self._stored(once, new=new)

    async def read(self, key: str, first: int, last: int) -> dict[str, Any]:
        """Begin to load the bytes ``first`` to ``last`` of an object: ``Body`` is to be closed. Raises BucketError."""
        return await self._call("get_object", Key=key, Range=f"bytes={first}-{last}")

    async def head(self, key: str, *, trusted: bool = False) -> dict[str, Any]:
        """What the store knows of an object. Raises NotThere, BucketError.

        ``trusted``: the store has just taken our credentials: they are not renewed for a 403.
        """
        doubted = tuple(code for code in BARE if not (trusted and code == "403"))
        return await self._call("head_object", doubted, Key=key)

    async def copy(self, source: str, target: str, told: Mapping[str, Any], more: Mapping[str, str]) -> None:
        """Copy an object. ``told``: its head; ``more``: what is added to its metadata. Raises BucketError."""
        asked: dict[str, Any] = {"Key": target, "CopySource": {"Bucket": self.bucket, "Key": source}}
        had = told.get("Metadata", {})
        if any(had.get(name) != value for name, value in more.items()):
            asked |= {name: told[name] for name in _COPIED if told.get(name)}
            asked |= {"Metadata": {**had, **more}, "MetadataDirective": "REPLACE"}
        asked |= {name: told[name] for name in _KEPT_SO if told.get(name)}
        await self._encrypted("copy_object", **asked)

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

    async def begin(self, key: str, options: Mapping[str, Any]) -> str:
        """Begin an object in parts; the upload's id. Raises BucketError."""
        return str((await self._encrypted("create_multipart_upload", Key=key, **options))["UploadId"])

    async def put_part(self, key: str, upload: str, number: int, body: Body, *, md5: str) -> Sent:
        """Store a part. Raises NotThere when the store does not know the upload (any more), BucketError."""
        call = self._call("upload_part", Key=key, UploadId=upload, PartNumber=number, Body=body, ContentMD5=md5)
        return _sent(await moving(call, body))

    async def parts(self, key: str, upload: str) -> tuple[Part, ...]:
        """The parts that the store has. Raises NotThere, BucketError."""
        found: list[Part] = []
        after = 0
        while True:
            answer = await self._call("list_parts", Key=key, UploadId=upload, PartNumberMarker=after)
            found += (Part(int(one["PartNumber"]), int(one["Size"]), _etag(one)) for one in answer.get("Parts", []))
            following = int(answer.get("NextPartNumberMarker") or 0)
            if not answer.get("IsTruncated") or following <= after:
                return tuple(found)
            after = following

    async def complete(self, key: str, upload: str, etags: Mapping[int, str], *, new: bool = False) -> None:
        """Make an object of its parts; ``new`` as in ``put``. Raises NotThere, WrongBytes, Taken, BucketError."""
        parts = {"Parts": [{"PartNumber": number, "ETag": f'"{etags[number]}"'} for number in sorted(etags)]}

        async def once(**more: str) -> dict[str, Any]:
            ask = "complete_multipart_upload"
            return await self._call(ask, Key=key, UploadId=upload, MultipartUpload=parts, **more)

        await self._stored(once, new=new)

    async def _stored(self, once: Callable[..., Awaitable[T]], *, new: bool) -> T:
        """Store something, only where nothing is when it shall be ``new`` and the store can say so."""
        if not (new and self._conditions):
            return await once()
        try:
            return await once(IfNoneMatch="*")
        except (Unsupported, NotTaken):
            stored = await once()
            self._conditions = False  # it was the condition that it did not take
            return stored

    async def abort(self, key: str, upload: str) -> None:
        """Give a multipart upload up; one that is not there is no error. Raises BucketError."""
        try:
            await self._call("abort_multipart_upload", Key=key, UploadId=upload)
        except NotThere:
            return

    async def begun(self, prefix: str) -> tuple[Begun, ...]:
        """Multipart uploads that have not ended, below a prefix: a thousand at most. Raises BucketError."""
        try:
            answer = await self._call("list_multipart_uploads", Prefix=prefix)
        except NotThere:
            return ()  # one store's way to say so
        return tuple(Begun(one["Key"], one["UploadId"], one["Initiated"]) for one in answer.get("Uploads", []))

    async def tidy(self) -> None:
        """Delete the kept credentials that have ended."""
        if self._kept is not None:
            await self._kept.tidy()

    async def _encrypted(self, name: str, **arguments: Any) -> dict[str, Any]:
        """A request that makes an object, encrypted as asked for. Raises NotEncrypted: never does it go without."""
        if self._encryption != NO_ENCRYPTION:
            arguments.setdefault("ServerSideEncryption", self._encryption)
        asked = arguments.get("ServerSideEncryption")
        if asked is None:
            return await self._call(name, **arguments)
        since, text = self._not_encrypted.get(asked, (0.0, ""))
        if text and time.monotonic() - since < NOT_ENCRYPTED_S:
            raise NotEncrypted(text)
        try:
            answer = await self._call(name, **arguments)
        except (Unsupported, NotTaken) as error:
            if "IfNoneMatch" in arguments:
                raise  # the same is asked for without that condition next
            if not about_encryption(error):
                hint = f"(if it does not encrypt as asked for, {asked}: see the setting s3_encryption)"
                raise type(error)(f"{error} {hint}") from error
            text = f"{error}: it seems not to encrypt as asked for ({asked}); see the setting s3_encryption"
            if asked not in self._not_encrypted:
                log.warning("nothing can be stored: %s", text)
            self._not_encrypted[asked] = (time.monotonic(), text)
            raise NotEncrypted(text) from error
        self._not_encrypted.pop(asked, None)
        return answer

    async def _call(self, name: str, doubted: tuple[str, ...] = (), /, **arguments: Any) -> dict[str, Any]:
        """One request. Credentials that have run out are fetched anew once, and it is sent again: it did nothing.

        ``doubted``: answers that may mean that, and have no room to say so.
        """
        client = await self._connected()
        assert self._credentials is not None
        call: Callable[..., Awaitable[dict[str, Any]]] = getattr(client, name)
        arguments["Bucket"] = self.bucket
        key = arguments.get("Key", "")
        async with translated(key):
            seen = await self._credentials.current()
        try:
            async with translated(key, doubted=doubted if self._credentials.age >= DOUBTED_AFTER else ()):
                return await call(**arguments)
        except Expired as error:
            async with translated(key):
                await self._credentials.renew(seen, doubted=error.doubted)
                seen = await self._credentials.current()
            if (body := arguments.get("Body")) is not None:
                body.seek(0)
        try:
            async with translated(key):
                return await call(**arguments)
        except Expired:
            await self._credentials.refused(seen)
            raise

    async def _connected(self) -> Any:
        async with self._turn:
            if self._client is None:
                session = await asyncio.to_thread(self._prepared)
                config = import_module("aiobotocore.config").AioConfig(
                    connect_timeout=min(self._timeout, CONNECT_SECONDS),
                    read_timeout=self._timeout,
                    max_pool_connections=CONNECTIONS,
                    retries={"total_max_attempts": self._attempts, "mode": "standard"},
                    # each body has its MD5 in the request: signing it would read it once more, on the event loop
                    s3={"addressing_style": "path" if self.endpoint else "auto", "payload_signing_enabled": False},
                    # and stores that are not AWS's own refuse trailers with checksums, or store them as data
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                )
                made = session.create_client("s3", region_name=self.region, endpoint_url=self.endpoint, config=config)
                self._client = await self._stack.enter_async_context(made)
            return self._client

    def _prepared(self) -> Any:
        """A session with credentials, and the library's description of S3 read. Blocks for about a second."""
        session: Any = import_module("aiobotocore.session").get_session()
        module = import_module("petalbus.handlers.bucket.credentials")
        made = module.Credentials(self._token_url, timeout=self._timeout, kept=self._kept)
        session._credentials = made.made  # the library's own recipe
        session.register_component("data_loader", _descriptions())
        self._credentials = made
        return session


@cache
def _descriptions() -> Any:
    """The library's reader of descriptions, with that of S3 read; one for all stores of a process."""
    loader: Any = import_module("botocore.loaders").create_loader()
    loader.load_service_model("s3", "service-2")
    loader.load_service_model("s3", "endpoint-rule-set-1")
    return loader


def _etag(answer: Mapping[str, Any]) -> str:
    return str(answer.get("ETag", "")).strip('"').lower()


def _sent(answer: Mapping[str, Any]) -> Sent:
    return Sent(_etag(answer), etag_is_md5(answer))


def etag_is_md5(told: Mapping[str, Any]) -> bool:
    """Whether an ETag may be an MD5: not where the store encrypts with keys of its owner."""
    return not str(told.get("ServerSideEncryption", "")).startswith("aws:kms") and "SSECustomerAlgorithm" not in told
