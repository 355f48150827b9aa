"""Access tokens for the cloud: fetched when they are needed, once for parallel calls, ahead of their end."""

from __future__ import annotations

import asyncio
import json
import math
import time
from datetime import datetime
from typing import Any, Final

from petalbus.daemon.bus.hiding import hide_in_log, shown_url
from petalbus.handlers.database.errors import Away

AHEAD_SECONDS: Final = 60.0
ASSUMED_SECONDS: Final = 900.0
"""How long a token is taken to be valid when the service does not say."""

_TIMEOUT: Final = 10.0
_MOST_ANSWER: Final = 64 << 10


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
        hide_in_log()
        try:
            async with (
                library.AsyncClient(timeout=_TIMEOUT, trust_env=False) as client,
                client.stream("POST", self._url) as answer,
            ):
                status, content = answer.status_code, bytearray()
                async for chunk in answer.aiter_bytes():
                    content += chunk
                    if len(content) > _MOST_ANSWER:
                        raise NoToken(f"the access token service's answer has more than {_MOST_ANSWER >> 10} KiB")
        except (library.HTTPError, OSError) as error:
            raise Away(f"the access token service at {shown_url(self._url)} cannot be reached") from error
        except (library.InvalidURL, ValueError):  # without the cause: it may show the URL
            raise Away(f"access_token_url is no URL that can be used: {shown_url(self._url)}") from None
        if status >= 300:
            raise NoToken(f"the access token service answered {status}")
        try:
            told = json.loads(content)
            token = told["accessToken"]
        except (ValueError, KeyError, TypeError, RecursionError):
            # without the cause: it may hold a piece of the answer
            raise NoToken("the access token service's answer has no accessToken") from None
        return _checked(token), _seconds(told.get("expiresAt"))


def _checked(told: Any) -> str:
    """A token that can stand in a header. The message says nothing of it."""
    if not isinstance(told, str):
        raise NoToken("the access token service's answer has an accessToken that is no text")
    token: str = told.strip()
    if not token or not token.isascii() or not token.isprintable():
        raise NoToken("the access token service gives out an accessToken that is empty, or not of printable ASCII")
    return token


def _seconds(expires: Any) -> float:
    """From now until a time on the wall clock, as the service gives it: seconds, milliseconds or RFC 3339.

    What says nothing, or a time that has gone by, is no time (one of the clocks is wrong): a token that has run out
    is refused, and fetched anew then.
    """
    try:
        if isinstance(expires, int | float) and not isinstance(expires, bool):
            at = expires / 1000 if expires > 10**11 else float(expires)
        elif isinstance(expires, str):
            at = datetime.fromisoformat(expires).timestamp()
        else:
            return ASSUMED_SECONDS
    except (ValueError, OverflowError, OSError):
        return ASSUMED_SECONDS
    left = at - time.time()
    return left if math.isfinite(left) and left > 0 else ASSUMED_SECONDS
