"""Reads from a started petal what its methods were marked with. Closures that ``startup`` has set on it count too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class RouteAction:
    """One HTTP route or websocket. ``options`` are the route's own (``summary``, ``response_model``, ...)."""

    protocol: str
    method: str | None
    path: str
    function: Callable[..., Any]
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class MqttAction:
    """One MQTT command, without the petal's name before it."""

    command: str
    function: Callable[..., Any]
    cpu_heavy: bool


@dataclass(frozen=True, slots=True)
class RecordAction:
    """One record type of the petal's inbox, and what ``on`` declared about it."""

    type: str
    function: Callable[..., Any]
    options: Mapping[str, Any]


def route_actions(petal: object) -> list[RouteAction]:
    """HTTP routes and websockets; an action of another protocol is returned as it is, for the runtime to refuse."""
    found = []
    for function in _members(petal):
        for action in _written(function, "__petal_actions__", "__petal_action__"):
            options = {name: value for name, value in action.items() if name not in ("protocol", "method", "path")}
            protocol = str(action.get("protocol", "http"))
            found.append(RouteAction(protocol, action.get("method"), str(action["path"]), function, options))
    return found


def mqtt_actions(petal: object) -> list[MqttAction]:
    """MQTT commands."""
    return [
        MqttAction(str(action["command"]), function, bool(action.get("cpu_heavy", False)))
        for function in _members(petal)
        for action in _written(function, "__mqtt_actions__", "__mqtt_action__")
    ]


def record_actions(petal: object) -> list[RecordAction]:
    """Record types of the petal's own inbox."""
    return [
        RecordAction(action["type"], function, {name: value for name, value in action.items() if name != "type"})
        for function in _members(petal)
        for action in _written(function, "__record_actions__", None)
    ]


def _members(petal: object) -> Iterator[Callable[..., Any]]:
    for name in dir(petal):
        if name.startswith("__"):
            continue
        # A property is code of the petal's: it is not run only to look at it.
        if isinstance(getattr(type(petal), name, None), property):
            continue
        member = getattr(petal, name, None)
        if callable(member):
            yield member


def _written(function: Callable[..., Any], several: str, one: str | None) -> list[Mapping[str, Any]]:
    actions = list(getattr(function, several, ()))
    alone = getattr(function, one, None) if one is not None else None
    if isinstance(alone, Mapping) and alone not in actions:  # written by hand
        actions.append(alone)
    return actions
