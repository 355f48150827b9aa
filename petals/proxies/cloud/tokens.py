"""Access tokens for the cloud: fetched when they are needed, once for parallel calls, ahead of their end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from petalbus.petals.proxies.errors import ProxyError, ProxyNotReady

if TYPE_CHECKING:
    import httpx

AHEAD_SECONDS: Final = 60.0
ASSUMED_SECONDS: Final = 900.0
"""How long a token is taken to be valid when the service does not say."""

_TIMEOUT: Final = 10.0


class TokenRefused(ProxyError):
    """The token service gives us no token. The message never shows one."""

    code = "cloud_token"
    status = 403


class Tokens:
    """The token of one proxy."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._token = ""
        self._until = float("-inf")
        self._turn = asyncio.Lock()
        self.fetched = 0

    async def get(self, library: Any, *, refused: str | None = None) -> str:
        """A valid token. ``refused``: the one that was not taken. Raises ProxyNotReady or TokenRefused."""
        async with self._turn:
            if time.monotonic() >= self._until or self._token == refused:
                self._token, seconds = await self._fetch(library)
                self._until = time.monotonic() + seconds - min(AHEAD_SECONDS, seconds / 2)
            return self._token

    async def _fetch(self, library: Any) -> tuple[str, float]:
        self.fetched += 1
        try:
            async with library.AsyncClient(timeout=_TIMEOUT, trust_env=False) as client:
                answer = await client.post(self._url)
        except library.HTTPError as error:
            raise ProxyNotReady(f"the access token service at {self._url} cannot be reached") from error
        if answer.status_code >= 400:
            raise TokenRefused(f"the access token service answered {answer.status_code}")
        try:
            told = answer.json()
            token = str(told["accessToken"])
        except (ValueError, KeyError, TypeError):
            raise TokenRefused("the access token service's answer has no accessToken") from None
        return token, _seconds(told.get("expiresAt"))


def bearer(library: Any, tokens: Tokens) -> httpx.Auth:
    """Adds the token to each request; one that is refused as unauthorised goes out once more with a new one."""

    class Bearer(library.Auth):  # type: ignore[misc]  # the library is loaded where it is used
        async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
            token = await tokens.get(library)
            request.headers["Authorization"] = f"Bearer {token}"
            response = yield request
            if response.status_code == 401:  # nothing was done
                request.headers["Authorization"] = f"Bearer {await tokens.get(library, refused=token)}"
                yield request

    made: httpx.Auth = Bearer()
    return made


def _seconds(expires: Any) -> float:
    """From now until a time on the wall clock, as the service gives it: seconds, milliseconds or RFC 3339."""
    try:
        if isinstance(expires, int | float):
            at = expires / 1000 if expires > 10**11 else float(expires)
        elif isinstance(expires, str):
            at = datetime.fromisoformat(expires).timestamp()
        else:
            return ASSUMED_SECONDS
    except ValueError:
        return ASSUMED_SECONDS
    return max(0.0, at - time.time())
