"""Temporary credentials from the session token service: fetched when they are needed, once for parallel calls."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from petalbus.handlers.bucket.errors import Away, Denied

if TYPE_CHECKING:
    from aiobotocore.credentials import AioDeferredRefreshableCredentials

ASSUMED_SECONDS: Final = 900
"""How long credentials are taken to be valid when the service does not say: the shortest that AWS gives."""

ADVISORY_SECONDS: Final = 120
MANDATORY_SECONDS: Final = 30
"""So long before their end they are fetched anew; the library's own values would fetch short ones for every request."""

_EXPIRY: Final = ("expiration", "expiresAt", "expires_at", "Expiration")


async def fetch(url: str, *, timeout: float) -> dict[str, str]:
    """Ask the service once: POST, both shapes of its answer. Raises Away or Denied; never shows what it got."""
    import httpx  # noqa: PLC0415  # only who stores logs needs it

    try:
        async with httpx.AsyncClient(timeout=timeout) as client:
            answer = await client.post(url)
    except httpx.HTTPError as error:
        raise Away(f"the session token service at {url} cannot be reached: {type(error).__name__}") from error
    if answer.status_code >= 400:
        raise Denied(f"Authentication failed: the session token service answered {answer.status_code}")
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
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        wanted = "accessKeyId, secretAccessKey and sessionToken"
        raise Denied(f"Authentication failed: the session token service's answer lacks {wanted}") from error


def credentials(url: str, *, timeout: float) -> AioDeferredRefreshableCredentials:
    """Credentials that fetch themselves."""
    from aiobotocore.credentials import AioDeferredRefreshableCredentials  # noqa: PLC0415  # takes long to import

    async def refresh() -> dict[str, str]:
        return await fetch(url, timeout=timeout)

    made: Any = AioDeferredRefreshableCredentials(refresh_using=refresh, method="petalbus-session-token")
    made._advisory_refresh_timeout = ADVISORY_SECONDS  # the library has no argument for it
    made._mandatory_refresh_timeout = MANDATORY_SECONDS  # the same
    return made


def _member(told: dict[str, Any], name: str) -> str:
    return str(told[name] if name in told else told[name[0].upper() + name[1:]])


def _text(expiry: Any) -> str:
    if isinstance(expiry, int | float):
        seconds = expiry / 1000 if expiry > 10**11 else expiry
        return datetime.fromtimestamp(seconds, UTC).isoformat()
    if isinstance(expiry, str):
        return expiry
    return (datetime.now(UTC) + timedelta(seconds=ASSUMED_SECONDS)).isoformat()
