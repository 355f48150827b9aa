"""What a petal's author uses: the base class, the decorators, the proxies, the test kit; and the petals we ship.

    from petalbus.petals import Petal, http_action, on, parse

The names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from petalbus.petals.base import Petal
    from petalbus.petals.decorators import http_action, mqtt_action, on, websocket_action
    from petalbus.petals.payloads import parse

__all__ = ["Petal", "http_action", "mqtt_action", "on", "parse", "websocket_action"]

_HOMES: Final = {
    "Petal": "petalbus.petals.base",
    "http_action": "petalbus.petals.decorators",
    "mqtt_action": "petalbus.petals.decorators",
    "on": "petalbus.petals.decorators",
    "websocket_action": "petalbus.petals.decorators",
    "parse": "petalbus.petals.payloads",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
