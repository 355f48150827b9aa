"""Which applications are there: those on the bus, and those that only announce themselves in plain keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from petalbus.daemon.bus import plain
from petalbus.daemon.bus.connection import ServerError

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus

ONLINE: Final = "online"
_SCAN: Final = 1000
_MAX_SCANS: Final = 1000


async def status_of(bus: Bus, app: str) -> dict[str, Any] | None:
    """The status of an application: what the bus knows, else what the application says of itself."""
    known = await _hash(bus, bus.keys.status(app))
    if known.get("status") != ONLINE:
        announced = await _hash(bus, plain.status(app))
        if announced and not plain.is_mirror(announced):
            known = announced
    if not known:
        return None
    told: dict[str, Any] = {"status": "offline", "app_id": app} | known
    if "last_seen" in known:
        told["last_seen"] = _number(known["last_seen"])
    return told


async def find_online(bus: Bus) -> list[str]:
    """Names of all applications that are online, sorted."""
    found = {one.app for one in await bus.applications() if one.status == ONLINE}
    for key in await _scan(bus, plain.STATUS + "*"):
        announced = await _hash(bus, key)
        if announced.get("status") == ONLINE and not plain.is_mirror(announced):
            found.add(announced.get("app_id") or key.removeprefix(plain.STATUS))
    for key in await _scan(bus, "app:*:online"):
        if not await _is_ours(bus, key):
            found.add(key.removeprefix("app:").removesuffix(":online"))
    return sorted(found)


async def _is_ours(bus: Bus, key: str) -> bool:
    try:
        return bool(await bus.call("GET", key) == plain.MIRRORED.encode())
    except ServerError:
        return False  # a key of another type: whatever it says, we did not write it


async def _hash(bus: Bus, key: str) -> dict[str, str]:
    try:
        flat = await bus.call("HGETALL", key)
    except ServerError:
        return {}  # a key of that name which is no hash announces nobody
    return {_text(name): _text(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}


async def _scan(bus: Bus, pattern: str) -> list[str]:
    cursor, found = b"0", set()
    for _ in range(_MAX_SCANS):
        cursor, names = await bus.call("SCAN", cursor, "MATCH", pattern, "COUNT", _SCAN)
        found |= {_text(name) for name in names}
        if cursor == b"0":
            break
    return sorted(found)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
