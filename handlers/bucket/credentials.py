"""Temporary credentials from the session token service: fetched when they are needed, once for parallel calls.

They are kept in memory only. A file would help in one case alone, that the store can be reached and the service cannot,
for the quarter of an hour that they are valid; an upload waits for that anyway, and a file can be stolen.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from petalbus.handlers.bucket.errors import Away, Denied, NoTokens

if TYPE_CHECKING:
    from aiobotocore.credentials import AioDeferredRefreshableCredentials

ASSUMED_SECONDS: Final = 900
"""How long credentials are taken to be valid when the service does not say: the shortest that AWS gives."""

ADVISORY_SECONDS: Final = 120
MANDATORY_SECONDS: Final = 30
"""So long before their end they are fetched anew; the library's own values would fetch short ones for every request."""

_EXPIRY: Final = ("expiration", "expiresAt", "expires_at", "Expiration")
_NO: Final = (400, 401, 403)


async def fetch(url: str, *, timeout: float) -> dict[str, str]:
    """Ask the service once: POST, both shapes of its answer; it is never shown. Raises Away, NoTokens or Denied."""
    httpx: Any = await asyncio.to_thread(_httpx)
    try:
        async with httpx.AsyncClient(timeout=timeout) as client:
            answer = await client.post(url)
    except httpx.HTTPError as error:
        raise Away(f"the session token service at {_shown(url)} cannot be reached: {type(error).__name__}") from error
    if answer.status_code >= 300:
        # only a clear no is one: anything else may be a gateway, or the page of a network that wants a login
        kind = Denied if answer.status_code in _NO else NoTokens
        raise kind(f"Authentication failed: the session token service answered {answer.status_code}")
    try:
        told = answer.json()
        inner = told.get("credentials") or told.get("Credentials") or told
        expiry = next((inner[name] for name in _EXPIRY if inner.get(name)), None)
        return {
            "access_key": _member(inner, "accessKeyId"),
            "secret_key": _member(inner, "secretAccessKey"),
            "token": _member(inner, "sessionToken"),
            "expiry_time": _text(expiry),
        }
    except (ValueError, KeyError, AttributeError, TypeError):
        wanted = "accessKeyId, secretAccessKey and sessionToken"
        # without the cause: it may hold a piece of the answer
        raise NoTokens(f"Authentication failed: the session token service's answer lacks {wanted}") from None


class Credentials:
    """Of one store. ``made`` is what the client library signs with. Import it in a thread: the library is large."""

    def __init__(self, url: str, *, timeout: float) -> None:
        from aiobotocore.credentials import AioDeferredRefreshableCredentials  # noqa: PLC0415  # takes long to import

        async def refresh() -> dict[str, str]:
            told = await fetch(url, timeout=timeout)
            self._since = time.monotonic()
            return told

        made: Any = AioDeferredRefreshableCredentials(refresh_using=refresh, method="petalbus-session-token")
        made._advisory_refresh_timeout = ADVISORY_SECONDS  # the library has no argument for it
        made._mandatory_refresh_timeout = MANDATORY_SECONDS  # the same
        self.made: AioDeferredRefreshableCredentials = made
        self._any: Any = made
        self._since = time.monotonic()

    @property
    def age(self) -> float:
        """Seconds since they were fetched."""
        return time.monotonic() - self._since

    async def current(self) -> object:
        """Those that a request signs with now; give it to ``renew`` when they are refused. Raises Away, Denied."""
        return await self._any.get_frozen_credentials()

    async def renew(self, seen: object) -> None:
        """Fetch new ones, unless somebody has done so since ``seen``. Raises Away, Denied."""
        async with self._any._refresh_lock:
            if self._any._frozen_credentials is seen:
                await self._any._protected_refresh(is_mandatory=True)


def _shown(url: str) -> str:
    """A URL without user, password and query: they may be secrets."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


def _httpx() -> Any:
    import httpx  # noqa: PLC0415  # only who stores logs needs it

    return httpx


def _member(told: dict[str, Any], name: str) -> str:
    return str(told[name] if name in told else told[name[0].upper() + name[1:]])


def _text(expiry: Any) -> str:
    if isinstance(expiry, int | float):
        seconds = expiry / 1000 if expiry > 10**11 else expiry
        return datetime.fromtimestamp(seconds, UTC).isoformat()
    if isinstance(expiry, str):
        try:
            if expiry.replace(".", "", 1).isdigit():
                return _text(float(expiry))
            told = datetime.fromisoformat(expiry)
            return (told if told.tzinfo is not None else told.replace(tzinfo=UTC)).isoformat()
        except (ValueError, OverflowError, OSError):
            pass  # a time that nobody can read says nothing
    return (datetime.now(UTC) + timedelta(seconds=ASSUMED_SECONDS)).isoformat()
