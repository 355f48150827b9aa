"""What a ``command`` record may ask of the vehicle, checked before anything is sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from petalbus.handlers.mavlink.errors import OrderInvalid

MIN_ALTITUDE_M: Final = 0.5
MAX_ALTITUDE_M: Final = 500.0
_MAX_COMMAND_ID: Final = 128


class Verb(StrEnum):
    """The commands there are."""

    ARM = "arm"
    DISARM = "disarm"
    TAKEOFF = "takeoff"
    LAND = "land"
    EMERGENCY_STOP = "emergency_stop"


_PARAMETERS: Final[dict[Verb, tuple[str, ...]]] = {
    Verb.ARM: (),
    Verb.DISARM: (),
    Verb.TAKEOFF: ("altitude", "speed"),
    Verb.LAND: ("immediate",),
    Verb.EMERGENCY_STOP: ("immediate",),
}
_UNUSED: Final = ("speed", "immediate")
"""Parameters that the messages of other programs carry and MAVLink's commands have no place for: accepted, reported."""

_ACTIONS: Final = {"land_immediately": Verb.LAND, "emergency_stop": Verb.EMERGENCY_STOP}


@dataclass(frozen=True, slots=True)
class Order:
    """A checked command. ``altitude`` is metres above the take-off place, for takeoff only."""

    verb: Verb
    altitude: float | None = None
    command_id: str | int | None = None
    unused: tuple[str, ...] = ()

    @property
    def urgent(self) -> bool:
        """True for what overtakes everything else."""
        return self.verb is Verb.EMERGENCY_STOP


def order_from_command(payload: Any, *, max_altitude: float = MAX_ALTITUDE_M) -> Order:
    """Read ``{"command": ..., "parameters": {...}, "command_id": ...}``; raises OrderInvalid.

    Parameters may also stand beside ``command``, as older programs write them. An unknown parameter is refused rather
    than ignored: a misspelt "altitude" must not become a takeoff to some other height.
    """
    data = _object(payload, "data")
    verb = _choice(data, "command", {verb.value: verb for verb in Verb})
    named = _PARAMETERS[verb]
    given = data.get("parameters")
    parameters = {} if given is None else {k: v for k, v in _object(given, "parameters").items() if v is not None}
    places = {name: f"parameters.{name}" for name in parameters}
    for name in named:
        if data.get(name) is not None and name not in parameters:
            parameters[name] = data[name]
            places[name] = name
    unknown = sorted(parameters.keys() - set(named))
    if unknown:
        limit = ", ".join(named) if named else f"no parameters for {verb}"
        raise OrderInvalid(f"parameters.{unknown[0]}", f"is no parameter of {verb}", limit=limit)
    altitude = None
    if verb is Verb.TAKEOFF:
        if "altitude" not in parameters:
            raise OrderInvalid("parameters.altitude", "is missing", limit=_altitude_limit(max_altitude))
        altitude = _number(parameters, "altitude", places, MIN_ALTITUDE_M, max_altitude, "m above the take-off place")
        if "speed" in parameters:
            _number(parameters, "speed", places, 0.1, 50.0, "m/s")
    if "immediate" in parameters and not isinstance(parameters["immediate"], bool):
        raise OrderInvalid(places["immediate"], f"is {parameters['immediate']!r}", limit="true or false")
    unused = tuple(name for name in _UNUSED if name in parameters)
    return Order(verb, altitude, _command_id(data), unused)


def order_from_emergency(payload: Any) -> Order:
    """Read an ``emergency_command``: ``{"action": "land_immediately" | "emergency_stop"}``; raises OrderInvalid."""
    data = _object(payload, "data")
    return Order(_choice(data, "action", _ACTIONS), command_id=_command_id(data))


def _object(value: Any, field: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise OrderInvalid(field, f"is {_shown(value)}", limit="a JSON object")
    return value


def _choice(data: Mapping[str, Any], field: str, choices: Mapping[str, Verb]) -> Verb:
    allowed = ", ".join(choices)
    if field not in data:
        raise OrderInvalid(field, "is missing", limit=allowed)
    value = data[field]
    verb = choices.get(value) if isinstance(value, str) else None
    if verb is None:
        raise OrderInvalid(field, f"is {_shown(value)}", limit=allowed)
    return verb


def _number(
    parameters: Mapping[str, Any], name: str, places: Mapping[str, str], low: float, high: float, unit: str
) -> float:
    value = parameters[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:  # NaN is in no range
        raise OrderInvalid(places[name], f"is {_shown(value)}", limit=f"a number from {low:g} to {high:g} ({unit})")
    return float(value)


def _altitude_limit(max_altitude: float) -> str:
    return f"a number from {MIN_ALTITUDE_M:g} to {max_altitude:g} (m above the take-off place)"


def _command_id(data: Mapping[str, Any]) -> str | int | None:
    value = data.get("command_id")
    if value is None or (
        isinstance(value, str | int) and not isinstance(value, bool) and len(str(value)) <= _MAX_COMMAND_ID
    ):
        return value
    raise OrderInvalid(
        "command_id", f"is {_shown(value)}", limit=f"a text or number of at most {_MAX_COMMAND_ID} characters"
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
