"""What stores answer, in our words: each code of theirs is one of our errors."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Container, Mapping
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from typing import Any, Final

from petalbus.handlers.bucket.errors import Away, BucketError, Denied, NotThere, Unsupported, WrongBytes

_EXPIRED: Final = (
    "ExpiredToken",
    "ExpiredTokenException",
    "RequestExpired",
    "InvalidToken",
    "TokenRefreshRequired",
    "InvalidAccessKeyId",
    "Unauthorized",
)
_MISSING: Final = ("404", "NoSuchKey", "NotFound", "NoSuchUpload")
_REFUSED: Final = ("403", "AccessDenied", "SignatureDoesNotMatch", *_EXPIRED)
_THROTTLED: Final = (
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "RequestThrottled",
    "RequestThrottledException",
    "TooManyRequests",
    "TooManyRequestsException",
    "ProvisionedThroughputExceededException",
    "TransactionInProgressException",
    "RequestLimitExceeded",
    "BandwidthLimitExceeded",
    "LimitExceededException",
    "PriorRequestNotComplete",
    "EC2ThrottledException",
)
_MEANWHILE: Final = ("ConditionalRequestConflict", "OperationAborted")
_PASSING: Final = (
    "SlowDown",
    "RequestTimeout",
    "RequestTimeTooSkewed",
    "ExpiredRequest",
    "ClientDisconnect",
    *_THROTTLED,
    *_MEANWHILE,
)
_PASSING_STATUS: Final = (408, 425, 429)
_WRONG: Final = ("BadDigest", "InvalidPart", "InvalidDigest", "IncompleteBody", "XAmzContentSHA256Mismatch")
_UNSUPPORTED: Final = ("NotImplemented", "MethodNotAllowed")
BARE: Final = ("400", "401", "403")
"""What a HEAD says of credentials that have run out: its answer has no room for more."""

SKEW_S: Final = 870.0
"""Stores refuse what was signed 15 minutes before or after their time; the answer to a HEAD cannot say so."""

_ENCRYPTION_WORDS: Final = ("encryption", "encrypted", "kms", "sse-")


class Taken(Away):
    """An object was to be new, and there is one already."""


class Occupied(Taken):
    """Another log of ours has the key that was made for this one: it needs another key."""


class Expired(Denied):
    """The credentials have run out, or are no more. ``doubted``: the store may have meant something else."""

    doubted = False


class NotTaken(BucketError):
    """HTTP 400 without a reason that we know."""


@asynccontextmanager
async def translated(key: str, *, doubted: Container[str] = ()) -> AsyncIterator[None]:
    """The library's errors, and the connection's, as ours.

    ``doubted``: codes that may mean that the credentials ran out, without saying so.
    """
    from aiohttp import ClientError as Broken  # noqa: PLC0415  # loaded with the client by now
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415  # the same

    try:
        yield
    except ClientError as error:
        raise _in_our_words(error.response, key, doubted=doubted) from error
    except (BotoCoreError, Broken, OSError, TimeoutError) as error:
        raise Away(f"the store cannot be reached: {type(error).__name__}") from error
    except RuntimeError as error:
        if "still expired" not in str(error):  # the library has no class of its own for it
            raise
        raise Away("the session token service gives out expired credentials: is this machine's clock right?") from error


def _in_our_words(answer: Mapping[str, Any], key: str, *, doubted: Container[str]) -> BucketError:
    told = answer.get("Error", {})
    code = str(told.get("Code", ""))
    status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in _MISSING:
        return NotThere(f"File not found: {key}")
    if (passing := _passing(code, answer)) is not None:
        return Away(f"the store cannot be used now: it answered {passing}")
    if code in _EXPIRED or code in doubted:
        expired = Expired(f"Access denied by the store ({code}): {key}")
        expired.doubted = code not in _EXPIRED
        return expired
    if code in _UNSUPPORTED or status == 501:
        return Unsupported(f"the store answered {code}: {told.get('Message', '')}")
    if code in _WRONG:
        return WrongBytes(f"the store answered {code}: {told.get('Message', '')}")
    if code in _REFUSED or status in (401, 403):
        return Denied(f"Access denied by the store ({code}): {key}")
    if code == "PreconditionFailed" or status == 412:
        return Taken(f"something was stored as {key} meanwhile")
    return (NotTaken if status == 400 else BucketError)(f"the store answered {code}: {told.get('Message', '')}")


def _passing(code: str, answer: Mapping[str, Any]) -> str | None:
    """What a store has answered, where that is no answer to the request itself and will pass; else None."""
    status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in BARE and (skew := _skew(answer)) >= SKEW_S:
        return f"{code}, and this machine's clock is {skew / 60:.0f} minutes from the store's"
    passes = code in _PASSING or status in _PASSING_STATUS or (status >= 500 and status != 501)
    return (code or str(status)) if passes and code not in _UNSUPPORTED else None


def _skew(answer: Mapping[str, Any]) -> float:
    """Seconds between the time of an answer and this machine's; 0 where it tells none."""
    told = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")
    try:
        return abs(parsedate_to_datetime(told).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def about_encryption(error: BucketError) -> bool:
    """Whether a store says that it does not encrypt: with a code, or in its words; or that it lacks something."""
    told = getattr(error.__cause__, "response", {}).get("Error", {})
    if isinstance(error, Unsupported):
        return bool(told.get("Code") != "MethodNotAllowed")
    said = " ".join(str(told.get(name, "")) for name in ("Code", "Message", "ArgumentName")).lower()
    return any(word in said for word in _ENCRYPTION_WORDS)
