"""Decorators that mark a petal's methods: HTTP routes, websockets, MQTT commands, and records of the bus.

A decorator only writes down what it was given, in an attribute of the function; the runtime reads it from the instance
after ``startup`` (``petalbus.petals.actions``). They can be stacked on one method. The attributes ``__petal_action__``
and ``__mqtt_action__`` are a contract of their own: petals also write them by hand, on closures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

from petalbus.schemas.vocabulary import TYPE_RULE

F = TypeVar("F", bound=Callable[..., Any])

HttpMethod = Literal["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")


def http_action(method: HttpMethod, path: str, **options: Any) -> Callable[[F], F]:
    """Serve a method at ``/petals/<name><path>``. ``options`` go to the route (``summary``, ``response_model``, ...).

    Raises ValueError when the method is unknown or the path does not begin with a slash.
    """
    verb = method.upper()
    if verb not in _METHODS:
        raise ValueError(f"http_action: method {method!r} is unknown; use one of {', '.join(_METHODS)}")
    return _petal_action({"protocol": "http", "method": verb, "path": _path("http_action", path), **options})


def websocket_action(path: str, **options: Any) -> Callable[[F], F]:
    """Serve a method as a websocket at ``/petals/<name><path>``. Raises ValueError as ``http_action``."""
    return _petal_action({"protocol": "websocket", "path": _path("websocket_action", path), **options})


def mqtt_action(command: str, *, cpu_heavy: bool = False, **options: Any) -> Callable[[F], F]:
    """Handle the MQTT command ``<name>/<command>``: an ``async def method(self, topic, message)``.

    ``cpu_heavy``: it runs in a thread of its own, so that computing in it does not hold up the event loop; proxies
    may be called from it as usual.
    """
    if not command or command != command.strip("/"):
        raise ValueError(f"mqtt_action: {command!r} is no command; give what follows the petal's name and the slash")

    def mark(function: F) -> F:
        action = {"command": command, "cpu_heavy": cpu_heavy, **options}
        earlier = tuple(getattr(function, "__mqtt_actions__", ()))
        _write(function, __mqtt_action__=action, __mqtt_actions__=(*earlier, action))
        return function

    return mark


def on(
    type: str,
    *,
    priority: int | None = None,
    concurrency: int | None = 1,
    key: str | None = None,
    redelivery: Literal["rerun", "report"] = "report",
    max_attempts: int = 5,
    timeout: float | None = None,
) -> Callable[[F], F]:
    """Handle records of a type that are sent to this petal: it is a member of its app's consumer group.

    The method takes the record, and optionally a context; it returns the result, a Reply or None, or is an async
    generator that yields Progress. ``priority``: take only records of this level or a higher one, refuse the others.
    ``concurrency``: how many may run at a time (None: no limit). ``key``: the member of the payload that names what
    must stay in order (records with different values may overtake each other). ``redelivery``: ``rerun`` when running
    it twice does no harm, ``report`` (the default, the safe one) when its sender shall be told that the outcome is
    unknown. ``timeout``: seconds that one run may take. Raises ValueError when the type is no record type.
    """
    if type != "*" and not TYPE_RULE.match(type):
        raise ValueError(f"on: {type!r} is no record type; use dotted words such as 'camera.shoot', or '*'")
    if timeout is not None and timeout <= 0:
        raise ValueError(f"on: timeout={timeout!r} s; it must be more than 0")

    def mark(function: F) -> F:
        action = {
            "type": type,
            "priority": priority,
            "concurrency": concurrency,
            "key": key,
            "redelivery": redelivery,
            "max_attempts": max_attempts,
            "timeout": timeout,
        }
        earlier = tuple(getattr(function, "__record_actions__", ()))
        _write(function, __record_actions__=(*earlier, action))
        return function

    return mark


def _petal_action(action: dict[str, Any]) -> Callable[[F], F]:
    def mark(function: F) -> F:
        earlier = tuple(getattr(function, "__petal_actions__", ()))
        _write(function, __petal_action__=action, __petal_actions__=(*earlier, action))
        return function

    return mark


def _write(function: Callable[..., Any], **attributes: Any) -> None:
    for name, value in attributes.items():
        setattr(function, name, value)


def _path(what: str, path: str) -> str:
    if not path.startswith("/"):
        raise ValueError(f"{what}: path {path!r} must begin with a slash")
    return path
