"""Temporary credentials from the session token service: fetched when they are needed, once for parallel calls.

They are kept in memory, and in a file where one is given (``kept``): then uploads go on after a restart, too, while the
service cannot be reached. Those whose end the service does not tell are in memory only.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from petalbus.daemon.bus.hiding import hide_in_log, shown_url
from petalbus.handlers.bucket.errors import Away, BucketError, NoTokens, Refusal

if TYPE_CHECKING:
    from aiobotocore.credentials import AioDeferredRefreshableCredentials

    from petalbus.handlers.bucket.kept import KeptCredentials

ASSUMED_SECONDS: Final = 900
"""How long credentials are taken to be valid when the service does not say: the shortest that AWS gives."""

ADVISORY_SECONDS: Final = 120
MANDATORY_SECONDS: Final = 30
"""So long before their end they are fetched anew; the library's own values would fetch short ones for every request."""

REMEMBERED_SECONDS: Final = 2.0
"""So long a failure of the service is told again without asking it: hundreds of uploads may wait for it."""

_EXPIRY: Final = ("expiration", "expiresAt", "expires_at", "Expiration")
_NO: Final = (400, 401, 403)

log = logging.getLogger(__name__)


class Fetched(NamedTuple):
    """What the library signs with, and whether the service has told when it ends."""

    signing: dict[str, str]
    end_told: bool


async def fetch(url: str, *, timeout: float) -> Fetched:
    """Ask the service once: POST, both shapes of its answer; it is never shown. Raises Away, NoTokens or Refusal."""
    httpx: Any = await asyncio.to_thread(_httpx)
    hide_in_log()
    try:
        async with httpx.AsyncClient(timeout=timeout) as client:
            answer = await client.post(url)
    except httpx.HTTPError as error:
        raise Away(
            f"the session token service at {shown_url(url)} cannot be reached: {type(error).__name__}"
        ) from error
    if answer.status_code >= 300:
        # only a clear no is one: anything else may be a gateway, or the page of a network that wants a login
        kind = Refusal if answer.status_code in _NO else NoTokens
        raise kind(f"Authentication failed: the session token service answered {answer.status_code}")
    try:
        told = answer.json()
        inner = told.get("credentials") or told.get("Credentials") or told
        end = _end(next((inner[name] for name in _EXPIRY if inner.get(name)), None))
        signing = {
            "access_key": _member(inner, "accessKeyId"),
            "secret_key": _member(inner, "secretAccessKey"),
            "token": _member(inner, "sessionToken"),
            "expiry_time": end or (datetime.now(UTC) + timedelta(seconds=ASSUMED_SECONDS)).isoformat(),
        }
        return Fetched(signing, end is not None)
    except (ValueError, KeyError, AttributeError, TypeError):
        wanted = "accessKeyId, secretAccessKey and sessionToken"
        # without the cause: it may hold a piece of the answer
        raise NoTokens(f"Authentication failed: the session token service's answer lacks {wanted}") from None


class Credentials:
    """Of one store. ``made`` is what the client library signs with. Import it in a thread: the library is large.

    ``kept``: a file of them. What is good for long enough in it is used without asking the service.
    """

    def __init__(self, url: str, *, timeout: float, kept: KeptCredentials | None = None) -> None:
        from aiobotocore.credentials import AioDeferredRefreshableCredentials  # noqa: PLC0415  # takes long to import

        self._url = url
        self._timeout = timeout
        self._kept = kept
        self._renewing = False
        self._failure: tuple[float, BucketError] | None = None
        made: Any = AioDeferredRefreshableCredentials(refresh_using=self._refresh, method="petalbus-session-token")
        made._advisory_refresh_timeout = ADVISORY_SECONDS  # the library has no argument for it
        made._mandatory_refresh_timeout = MANDATORY_SECONDS  # the same
        self.made: AioDeferredRefreshableCredentials = made
        self._any: Any = made
        self._since = time.monotonic()

    @property
    def age(self) -> float:
        """Seconds since they were fetched; infinite for those of an earlier run."""
        return time.monotonic() - self._since

    async def current(self) -> object:
        """Those that a request signs with now; give it to ``renew`` when they are refused. Raises Away, NoTokens."""
        return await self._any.get_frozen_credentials()

    async def renew(self, seen: object, *, doubted: bool = False) -> None:
        """Fetch new ones, unless somebody has done so since ``seen``. Raises Away, NoTokens.

        ``doubted``: the store may have meant something else.
        """
        async with self._any._refresh_lock:
            if self._any._frozen_credentials is seen:
                if not doubted:
                    await self._forget(seen)
                self._renewing = True
                try:
                    await self._any._protected_refresh(is_mandatory=True)
                finally:
                    self._renewing = False

    async def refused(self, seen: object) -> None:
        """The store does not take these, though they are new: they are not kept any longer."""
        async with self._any._refresh_lock:
            if self._any._frozen_credentials is seen:
                await self._forget(seen)

    async def _forget(self, seen: object) -> None:
        if self._kept is not None:
            await self._kept.forget(getattr(seen, "access_key", None))

    async def _refresh(self) -> dict[str, str]:
        """What the library calls, one call at a time."""
        kept = await self._kept.load() if self._kept is not None and not self._renewing else None
        if kept is not None and _seconds_left(kept) > ADVISORY_SECONDS:
            return self._of_file(kept)
        try:
            told = await self._fetch()
        except BucketError as error:
            refused = isinstance(error, Refusal)
            if self._kept is not None and refused:
                await self._kept.forget()  # the service does not let us in any more
            if kept is None or refused or _seconds_left(kept) <= 0:
                raise
            log.info("credentials of an earlier time are used until they end: %s", error)
            return self._of_file(kept)
        self._since = time.monotonic()
        if self._kept is not None and told.end_told:
            await self._kept.save(told.signing)
        return told.signing

    async def _fetch(self) -> Fetched:
        if self._failure is not None:
            when, error = self._failure
            if time.monotonic() - when < REMEMBERED_SECONDS:
                raise type(error)(str(error))
        try:
            told = await fetch(self._url, timeout=self._timeout)
        except BucketError as error:
            self._failure = time.monotonic(), error.with_traceback(None)
            raise
        self._failure = None
        return told

    def _of_file(self, kept: dict[str, str]) -> dict[str, str]:
        self._since = -math.inf
        return kept


def _seconds_left(kept: dict[str, str]) -> float:
    return (datetime.fromisoformat(kept["expiry_time"]) - datetime.now(UTC)).total_seconds()


def _httpx() -> Any:
    import httpx  # noqa: PLC0415  # only who stores logs needs it

    return httpx


def _member(told: dict[str, Any], name: str) -> str:
    return str(told[name] if name in told else told[name[0].upper() + name[1:]])


def _end(expiry: Any) -> str | None:
    """The time of their end as a text with its zone; None for one that nobody can read."""
    try:
        if isinstance(expiry, str) and expiry.replace(".", "", 1).isdigit():
            expiry = float(expiry)
        if isinstance(expiry, int | float):
            seconds = expiry / 1000 if expiry > 10**11 else expiry
            return datetime.fromtimestamp(seconds, UTC).isoformat()
        if isinstance(expiry, str):
            told = datetime.fromisoformat(expiry)
            return (told if told.tzinfo is not None else told.replace(tzinfo=UTC)).isoformat()
    except (ValueError, OverflowError, OSError):
        pass  # it says nothing
    return None
