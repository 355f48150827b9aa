"""What every request passes first: who is called (Host), who calls (Origin), how much is sent, and how slowly.

The bus is open to every program on this computer and to no web page that is not ours. A page elsewhere reaches a
server on the loopback interface through the browser of whoever looks at it, directly or by a name that it lets point
here (DNS rebinding): the first is stopped by its Origin, the second by its Host.
"""

from __future__ import annotations

import asyncio
import logging
import time
from email.utils import formatdate
from typing import Any, Final

from petalbus.daemon.http.answers import App, Message, Receive, Scope, Send, refuse, request_id
from petalbus.daemon.http.errors import BODY, Body, Refused
from petalbus.daemon.http.options import HttpOptions, is_loopback

_SAFE: Final = frozenset(("GET", "HEAD", "OPTIONS"))
_ELSEWHERE: Final = (b"cross-site", b"same-site")
_HOSTS_REMEMBERED: Final = 256

log: Final = logging.getLogger(__name__)


class Guard:
    """An ASGI app around all others."""

    def __init__(self, app: App, options: HttpOptions) -> None:
        self._app = app
        self._options = options
        self._hosts: set[bytes] = set()
        names = [name.lower().rstrip(".") for name in options.allowed_hosts]
        self._names = frozenset(name for name in names if not name.startswith("*."))
        self._suffixes = tuple(name[1:] for name in names if name.startswith("*."))
        self._origins = frozenset(origin.rstrip("/").lower().encode() for origin in options.allowed_origins)
        self._counts = {"host_refused": 0, "origin_refused": 0, "too_slow": 0}
        self._statuses = [0] * 6
        self._date: tuple[int, bytes] = (0, b"")

    def statistics(self) -> dict[str, Any]:
        """How many were refused, and the answers by class of status."""
        classes = {f"{hundred}xx": count for hundred, count in enumerate(self._statuses) if count}
        return {**self._counts, "answers": classes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let it pass, or answer it."""
        if scope["type"] not in ("http", "websocket"):
            return
        host = origin = site = None
        has_body = False
        for name, value in scope["headers"]:
            if name == b"host":
                host = value if host is None else b""  # two of them: whom it calls is anybody's guess
            elif name == b"origin":
                origin = value
            elif name == b"sec-fetch-site":
                site = value
            elif name in (b"content-length", b"transfer-encoding"):
                has_body = has_body or value != b"0"
        is_http = scope["type"] == "http"
        allowed = origin is not None and origin.lower() in self._origins
        answer = self._answering(scope, send, origin if allowed else None) if is_http else send
        if host is None or not (host in self._hosts or self._host_is_ours(host, scope)):
            await self._refuse_host(scope, answer, host)
        elif not allowed and self._is_foreign(scope, host, origin, site):
            await self._refuse_origin(scope, answer, origin)
        elif allowed and is_http and scope["method"] == "OPTIONS" and _asks_first(scope):
            await _preflight(scope, answer)
        else:
            if has_body and is_http:
                body = scope[BODY] = Body(scope, receive, limit=self._options.body_limit, patience=self._patiently)
                receive = body.receive
            await self._app(scope, receive, answer)

    def _host_is_ours(self, host: bytes, scope: Scope) -> bool:
        name = _without_port(host.decode("latin-1")).lower().rstrip(".")
        server = scope.get("server") or ("", None)
        if not (
            is_loopback(name)
            or name in self._names
            or (self._suffixes and name.endswith(self._suffixes))
            # an address is no name that somebody could let point elsewhere
            or (name.strip("[]") == str(server[0]).lower() and not is_loopback(self._options.host))
        ):
            return False
        if len(self._hosts) < _HOSTS_REMEMBERED:
            self._hosts.add(host)
        return True

    def _is_foreign(self, scope: Scope, host: bytes, origin: bytes | None, site: bytes | None) -> bool:
        """True when a web page of somebody else's wants to change something, or to open a websocket."""
        if scope["type"] == "http" and scope["method"] in _SAFE:
            return False
        if origin is None:
            return site in _ELSEWHERE
        _, _, called = origin.lower().partition(b"://")
        return called != host.lower()

    async def _refuse_host(self, scope: Scope, send: Send, host: bytes | None) -> None:
        self._counts["host_refused"] += 1
        shown = "no host" if host is None else repr(host.decode("latin-1")[:100])
        text = f"{shown} is not a name of this server; a name that is meant to be one belongs into http_allowed_hosts"
        await refuse(scope, send, 400 if host is None else 403, "host_refused", text)

    async def _refuse_origin(self, scope: Scope, send: Send, origin: bytes | None) -> None:
        self._counts["origin_refused"] += 1
        shown = "another site" if origin is None else repr(origin.decode("latin-1")[:100])
        text = f"pages of {shown} may not do this; one that may belongs into http_allowed_origins"
        await refuse(scope, send, 403, "origin_refused", text)

    async def _patiently(self, receive: Receive) -> Message:
        try:
            async with asyncio.timeout(self._options.body_timeout):
                return await receive()
        except TimeoutError:
            self._counts["too_slow"] += 1
            text = f"nothing came of the body for {self._options.body_timeout:g} s"
            raise Refused(408, "body_too_slow", text, {"Connection": "close"}) from None

    def _answering(self, scope: Scope, send: Send, origin: bytes | None) -> Send:
        began = time.monotonic()

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                status = message["status"]
                self._statuses[min(status // 100, 5)] += 1
                headers = [*message.get("headers", ())]
                headers += [(b"date", self._now()), (b"x-request-id", request_id(scope).encode())]
                if origin is not None:
                    headers += [
                        (b"access-control-allow-origin", origin),
                        (b"access-control-allow-credentials", b"true"),
                        (b"vary", b"Origin"),
                    ]
                message["headers"] = headers
                if log.isEnabledFor(logging.DEBUG):
                    ms = (time.monotonic() - began) * 1e3
                    log.debug("%s %s: %d after %.1f ms", scope["method"], scope["path"], status, ms)
            await send(message)

        return answer

    def _now(self) -> bytes:
        second = int(time.time())
        if self._date[0] != second:
            self._date = (second, formatdate(second, usegmt=True).encode())
        return self._date[1]


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]


def _asks_first(scope: Scope) -> bool:
    return any(name == b"access-control-request-method" for name, _ in scope["headers"])


async def _preflight(scope: Scope, send: Send) -> None:
    asked = dict(scope["headers"])
    headers = [
        (b"access-control-allow-methods", b"GET, HEAD, POST, PUT, PATCH, DELETE"),
        (b"access-control-max-age", b"600"),
    ]
    if wanted := asked.get(b"access-control-request-headers"):
        headers.append((b"access-control-allow-headers", wanted))
    if b"access-control-request-private-network" in asked:
        headers.append((b"access-control-allow-private-network", b"true"))
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
