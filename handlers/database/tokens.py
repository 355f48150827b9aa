"""Access tokens for the cloud: fetched when they are needed, once for parallel calls, ahead of their end."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from typing import Any, Final

from petalbus.handlers.database.errors import Away

AHEAD_SECONDS: Final = 60.0
ASSUMED_SECONDS: Final = 900.0
"""How long a token is taken to be valid when the service does not say."""

_TIMEOUT: Final = 10.0


class NoToken(Away):
    """The token service gives us no token, or the cloud takes none of them. The message never shows one."""

    code = "cloud_token"
    status = 403


class Tokens:
    """The token of one client."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._token = ""
        self._until = float("-inf")
        self._turn = asyncio.Lock()
        self.fetched = 0

    async def get(self, library: Any, *, refused: str | None = None) -> str:
        """A valid token. ``library``: httpx. ``refused``: the one that was not taken. Raises Away."""
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
            raise Away(f"the access token service at {self._url} cannot be reached") from error
        if answer.status_code >= 300:
            raise NoToken(f"the access token service answered {answer.status_code}")
        try:
            told = answer.json()
            token = str(told["accessToken"])
        except (ValueError, KeyError, TypeError):
            # without the cause: it may hold a piece of the answer
            raise NoToken("the access token service's answer has no accessToken") from None
        return token, _seconds(told.get("expiresAt"))


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
