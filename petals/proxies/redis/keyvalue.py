"""Keys, hashes and lists, as they lie in Redis: petals' own names, no prefix."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Final

from petalbus.daemon.bus.connection import ServerError
from petalbus.daemon.bus.errors import BusError
from petalbus.petals.proxies.base import BaseProxy
from petalbus.petals.proxies.errors import ProxyError, ProxyNotReady

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus

Value = str | bytes | int | float
MAX_VALUE_BYTES: Final = 16 * 1024 * 1024
"""Largest value: the server has other things to do, and little memory."""

MAX_FOUND: Final = 1_000_000
"""Keys that a scan returns at most."""


class RedisRefused(ProxyError):
    """The server refused a command; the message says which, on which key, and why."""

    code = "redis_refused"


class KeyValue(BaseProxy):
    """The calls. Values are text (numbers are written as text); bytes that are no UTF-8 come back with ``\\ufffd``.

    All raise ProxyNotReady when the server cannot be reached in time, and RedisRefused when it refuses. Only calls that
    read are repeated after a lost answer.
    """

    @abstractmethod
    async def _own_bus(self) -> Bus:
        """The client of the bus, open."""

    async def get(self, key: str) -> str | None:
        """A key's value; None when there is none."""
        return _text(await self._reading("GET", key))

    async def set(self, key: str, value: Value, ex: int | None = None) -> bool:
        """Set a key, for ``ex`` seconds (for good when not given). True."""
        if ex is not None and ex <= 0:
            raise ValueError(f"set {key!r}: ex={ex!r} s; it must be a whole number above 0")
        more = () if ex is None else ("EX", ex)
        return bool(await self._writing("SET", key, _checked(key, value), *more) == b"OK")

    async def delete(self, *keys: str) -> int:
        """Delete keys; how many there were."""
        return int(await self._writing("DEL", *keys)) if keys else 0

    async def exists(self, key: str) -> bool:
        """Whether there is such a key."""
        return bool(await self._reading("EXISTS", key))

    async def expire(self, key: str, seconds: int) -> bool:
        """Let a key vanish after so many seconds; False when there is none."""
        return bool(await self._writing("EXPIRE", key, seconds))

    async def ttl(self, key: str) -> int:
        """Seconds that a key has left; -1: for good, -2: there is none."""
        return int(await self._reading("TTL", key))

    async def hset(self, hash_key: str, field: str, value: Value) -> int:
        """Set a field of a hash; 1 when it is new, 0 when it was there."""
        return int(await self._writing("HSET", hash_key, field, _checked(hash_key, value)))

    async def hget(self, hash_key: str, field: str) -> str | None:
        """A field of a hash; None when there is none."""
        return _text(await self._reading("HGET", hash_key, field))

    async def hgetall(self, hash_key: str) -> dict[str, str]:
        """All fields of a hash; empty when there is no hash."""
        flat = await self._reading("HGETALL", hash_key)
        return {_word(name): _word(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}

    async def hdel(self, hash_key: str, *fields: str) -> int:
        """Delete fields of a hash; how many there were."""
        return int(await self._writing("HDEL", hash_key, *fields)) if fields else 0

    async def lpush(self, list_key: str, *values: Value) -> int:
        """Put values before a list; its length then."""
        return int(await self._writing("LPUSH", list_key, *(_checked(list_key, value) for value in values)))

    async def rpush(self, list_key: str, *values: Value) -> int:
        """Put values behind a list; its length then."""
        return int(await self._writing("RPUSH", list_key, *(_checked(list_key, value) for value in values)))

    async def lpop(self, list_key: str) -> str | None:
        """Take the first value of a list; None when it is empty."""
        return _text(await self._writing("LPOP", list_key))

    async def rpop(self, list_key: str) -> str | None:
        """Take the last value of a list; None when it is empty."""
        return _text(await self._writing("RPOP", list_key))

    async def llen(self, list_key: str) -> int:
        """The length of a list."""
        return int(await self._reading("LLEN", list_key))

    async def ltrim(self, list_key: str, start: int, end: int) -> bool:
        """Keep only the values from ``start`` to ``end``, both included. True."""
        return bool(await self._writing("LTRIM", list_key, start, end) == b"OK")

    async def lrange(self, list_key: str, start: int = 0, end: int = -1) -> list[str]:
        """Values of a list from ``start`` to ``end``, both included; negative numbers count from its end."""
        return [_word(value) for value in await self._reading("LRANGE", list_key, start, end)]

    async def scan_keys(self, pattern: str = "*", count: int = 100) -> list[str]:
        """All keys that fit a pattern, each once. ``count``: keys that the server looks at in one step."""
        if count < 1:
            raise ValueError(f"scan_keys: count={count!r}; it must be at least 1")
        cursor, found = b"0", dict[str, None]()
        while True:
            cursor, keys = await self._reading("SCAN", cursor, "MATCH", pattern, "COUNT", count)
            found.update(dict.fromkeys(map(_word, keys)))
            if len(found) > MAX_FOUND:
                raise RedisRefused(f"more than {MAX_FOUND} keys fit {pattern!r}; use a narrower pattern")
            if cursor == b"0":
                return list(found)

    async def _reading(self, *words: Any) -> Any:
        """A command that reads: repeated until it is answered."""
        bus = await self._own_bus()
        return await _translated(bus.ask(*words), words)

    async def _writing(self, *words: Any) -> Any:
        """A command that changes something: sent once."""
        bus = await self._own_bus()
        return await _translated(bus.call(*words), words)


async def _translated(answer: Any, words: tuple[Any, ...]) -> Any:
    try:
        return await answer
    except ServerError as error:
        raise RedisRefused(f"{words[0]} {words[1]!r}: {error}") from error
    except BusError as error:
        raise ProxyNotReady(f"{words[0]} {words[1]!r}: {error}") from error


def _checked(key: str, value: Any) -> bytes | str | int | float:
    if isinstance(value, bool) or not isinstance(value, str | bytes | int | float):
        raise TypeError(f"the value of {key!r} is {type(value).__name__}; use text, such as json.dumps(...)")
    size = len(value.encode()) if isinstance(value, str) else len(value) if isinstance(value, bytes) else 0
    if size > MAX_VALUE_BYTES:
        raise RedisRefused(f"the value of {key!r} has {size} bytes; the limit is {MAX_VALUE_BYTES}")
    return value


def _text(value: bytes | None) -> str | None:
    return None if value is None else _word(value)


def _word(value: bytes) -> str:
    return value.decode("utf-8", "replace")
