"""DynamoDB's errors in our words."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from petalbus.handlers.database.errors import Away, Busy, Failing, Forbidden, NoTable, NotThere, Refused, TableError
from petalbus.handlers.database.tokens import NoToken

_EXPIRED: Final = (
    "ExpiredToken",
    "ExpiredTokenException",
    "UnrecognizedClientException",
    "InvalidSignatureException",
    "MissingAuthenticationToken",
    "MissingAuthenticationTokenException",
    "IncompleteSignature",
    "IncompleteSignatureException",
    "InvalidClientTokenId",
    "RequestExpired",
)
_BUSY: Final = (
    "ProvisionedThroughputExceededException",
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "RequestThrottled",
    "RequestThrottledException",
    "TooManyRequestsException",
    "SlowDown",
    "RequestLimitExceeded",
    "LimitExceededException",
    "TransactionConflictException",
    "TransactionInProgressException",
    "ReplicatedWriteConflictException",
    "PriorRequestNotComplete",
    "BandwidthLimitExceeded",
)
_FAILING: Final = ("ItemCollectionSizeLimitExceededException",)
_FORBIDDEN: Final = ("AccessDeniedException", "AccessDenied", "OptInRequired")
"""Said of one table or one call, by who takes our credentials."""
_NO_TABLE: Final = "ResourceNotFoundException"
"""Said of a table that is being made or restored, too, and where the prefix or the region is wrong for a while."""

_IN_ITS_PLACE: Final = (0, 401, 403, 404, 407)
_CHANGED: Final = "ConditionalCheckFailedException"


class Changed(NotThere):
    """The condition does not hold. Never leaves this room."""


class Expired(NoToken):
    """The cloud does not take these credentials."""


@asynccontextmanager
async def translated(call: str, where: str, *, last: bool = False) -> AsyncIterator[None]:
    """Raise TableError for what the library raises. ``last``: new credentials do not help."""
    from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError  # noqa: PLC0415  # loaded with the client by now

    try:
        yield
    except ClientError as error:
        raise _in_our_words(error.response, call, last=last) from error
    except ParamValidationError as error:
        raise Refused(f"{call}: {error}") from error
    except (BotoCoreError, OSError, TimeoutError) as error:
        raise Away(f"the cloud ({where}) cannot be reached: {type(error).__name__}") from error
    except TableError:
        raise
    except RuntimeError as error:
        if "still expired" not in str(error):  # the library has no class of its own for it
            raise
        text = "the session token service gives out expired credentials: is this machine's clock right?"
        raise NoToken(text) from error
    except Exception as error:
        if type(error).__module__.startswith("botocore."):  # such as an answer that it cannot read
            raise Away(f"the cloud ({where}) cannot be reached: {type(error).__name__}") from error
        if getattr(error, "passes", None) is None:
            raise
        raise NoToken(str(error)) from error  # the credentials' own


def _in_our_words(answer: Mapping[str, Any], call: str, *, last: bool) -> TableError:
    told = answer.get("Error", {})
    code, message = str(told.get("Code", "")), str(told.get("Message", ""))
    status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code == _CHANGED:
        return Changed(message)
    if code in _EXPIRED:
        kind = NoToken if last else Expired
        return kind(f"the cloud does not take the credentials that the session token service gives out ({code})")
    if code in _BUSY or status in (408, 425, 429):
        return Busy(f"{call}: the cloud answered {code or status}: {message}")
    if code in _FAILING or status >= 500:
        return Failing(f"{call}: the cloud answered {code or status}: {message}")
    if code in _FORBIDDEN or code == _NO_TABLE:
        forbidden = NoTable if code == _NO_TABLE else Forbidden
        return forbidden(f"{call}: the cloud answered {code}: {message}")
    if not code or code.isdigit():  # no word of its own: something else has answered in its place
        if 300 <= status < 400 or status in _IN_ITS_PLACE:
            return Away(f"{call}: what answered ({status}) is no cloud")
        return Failing(f"{call}: what answered ({status}) is no cloud, and perhaps only for this call")
    return Refused(f"{call}: the cloud answered {code}: {message}", status if 400 <= status < 500 else 400)
