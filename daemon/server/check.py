"""Whether a configured server (`--redis URL`) can carry a bus."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from petalbus.daemon.server.errors import ServerUnreachable, ServerUnsuitable
from petalbus.daemon.server.find import FLOOR, Kind
from petalbus.daemon.server.probe import client, server_info, without_password


@dataclass(frozen=True, slots=True)
class ServerReport:
    """A server that can carry a bus. ``warnings``: what weakens the delivery contract there, with what to do."""

    kind: Kind
    version: tuple[int, ...]
    append_only: bool
    maxmemory: int
    maxmemory_policy: str
    warnings: tuple[str, ...]

    @property
    def label(self) -> str:
        """Kind and version for people, such as ``redis 7.0.15``."""
        return f"{self.kind} {'.'.join(map(str, self.version))}"


async def check_server(url: str, *, timeout: float = 5.0, options: Mapping[str, Any] | None = None) -> ServerReport:
    """Ask the server at ``url`` whether it can carry a bus. ``timeout`` seconds for connecting and for the answer.

    ``options`` go to redis-py as they are (``username``, ``ssl_ca_certs`` ...). Raises ``ServerUnreachable`` (wrong
    address, TLS, password or permissions) and ``ServerUnsuitable`` (too old, still loading, a replica, a cluster node).
    """
    shown = without_password(url)
    try:
        async with client(url, timeout=timeout, options=options) as redis:
            info = await server_info(redis)
    except ValueError as error:
        raise ServerUnreachable(f"{shown} is no server address: {error}") from error
    except NoPermissionError as error:
        raise ServerUnreachable(f"{shown}: this user may not ask INFO ({error}); grant it +info") from error
    except AuthenticationError as error:
        raise ServerUnreachable(f"{shown}: user name or password is refused ({error})") from error
    except RedisTimeoutError as error:
        raise ServerUnreachable(f"{shown} did not answer within {timeout:g} s") from error
    except (RedisConnectionError, OSError) as error:
        raise ServerUnreachable(f"{shown} cannot be reached: {error}") from error
    except (ResponseError, RedisError) as error:
        raise ServerUnreachable(f"{shown} refuses: {error}") from error
    return judge(info, server=shown)


def judge(info: Mapping[str, Any], *, server: str) -> ServerReport:
    """What INFO's answer means for a bus; ``server`` names it in messages. Raises ``ServerUnsuitable``."""
    kind, version = _kind_and_version(info)
    found = f"{kind} {'.'.join(map(str, version))}" if version else "a server of unknown version"
    if version < FLOOR[kind]:
        raise ServerUnsuitable(
            f"{server} is {found}; the bus needs Redis {_dotted(FLOOR['redis'])} or Valkey {_dotted(FLOOR['valkey'])} "
            f"or later: upgrade it, or leave --redis out to use the embedded server"
        )
    role = info.get("role", "master")
    if role != "master":
        raise ServerUnsuitable(f"{server} is a replica (role {role}), which refuses writes; name its primary")
    if info.get("loading"):
        raise ServerUnsuitable(f"{server} still loads its data; try again when it has")
    if int(info.get("cluster_enabled", 0)):
        raise ServerUnsuitable(f"{server} is a cluster node; name a server that is not part of a cluster")
    maxmemory, policy = int(info.get("maxmemory", 0)), str(info.get("maxmemory_policy", ""))
    append_only = bool(info.get("aof_enabled"))
    warnings = []
    if policy != "noeviction":
        warnings.append(
            f"{server} throws data away when its memory is full (maxmemory-policy {policy or 'unknown'}): "
            "set maxmemory-policy noeviction"
        )
    if maxmemory == 0:
        warnings.append(f"{server} has no memory ceiling: set maxmemory")
    if not append_only:
        warnings.append(f"{server} keeps no append-only file, so its death loses records: set appendonly yes")
    return ServerReport(kind, version, append_only, maxmemory, policy, tuple(warnings))


def _kind_and_version(info: Mapping[str, Any]) -> tuple[Kind, tuple[int, ...]]:
    # Valkey also gives a redis_version (7.2.4 for ever), so its own is asked first.
    if "valkey_version" in info:
        return "valkey", _parse(info["valkey_version"])
    return "redis", _parse(info.get("redis_version", ""))


def _parse(version: object) -> tuple[int, ...]:
    match = re.match(r"\d+(?:\.\d+)*", str(version))
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
