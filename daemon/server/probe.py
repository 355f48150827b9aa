"""Ask a server who it is and whether it is ready: a few commands, off the hot lane, through redis-py."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote, urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff


def unix_url(path: str) -> str:
    """The URL of a unix socket; characters that mean something in a URL are escaped."""
    return f"unix://{quote(path)}"


def without_password(url: str) -> str:
    """``url`` for a message or a log line: password and options left out."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    if at:
        host = f"{user.partition(':')[0]}:***@{host}"
    return f"{parts.scheme}://{host}{parts.path}"


@asynccontextmanager
async def client(url: str, *, timeout: float, options: Mapping[str, Any] | None = None) -> AsyncIterator[Redis]:
    """A redis-py client for a few questions: no retries, ``timeout`` seconds for connecting and for each answer.

    ``options`` go to redis-py as they are (``ssl_ca_certs`` and the like).
    """
    given: dict[str, Any] = {
        "decode_responses": True,
        "driver_info": None,
        "protocol": 2,
        **(options or {}),
        "retry": Retry(NoBackoff(), 0),
        "socket_connect_timeout": timeout,
        "socket_timeout": timeout,
        "health_check_interval": 0,
        "single_connection_client": False,
        "max_connections": 2,
    }
    redis = Redis.from_url(url, **given)
    try:
        yield redis
    finally:
        await redis.aclose()


async def server_info(redis: Redis) -> dict[str, Any]:
    """Everything that INFO says, in one dictionary."""
    answer: dict[str, Any] = await redis.execute_command("INFO")  # type: ignore[no-untyped-call]  # redis-py does not type it
    return answer


async def peer_pid(path: str, *, timeout: float) -> int | None:
    """The process that listens on the unix socket ``path``, as the kernel knows it; ``None`` if nobody does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as end:
        end.setblocking(False)  # noqa: FBT003  # the standard library takes it by position
        try:
            async with asyncio.timeout(timeout):
                await asyncio.get_running_loop().sock_connect(end, path)
        except (OSError, TimeoutError):
            return None
        credentials = end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", credentials)[0]
    return pid or None
