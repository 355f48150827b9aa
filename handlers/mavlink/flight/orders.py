"""What a ``command`` record may ask of the vehicle, checked before anything is sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from petalbus.handlers.mavlink.errors import OrderInvalid

if TYPE_CHECKING:
    from petalbus.schemas.record import Record

MIN_ALTITUDE_M: Final = 0.5
MAX_ALTITUDE_M: Final = 500.0
_MAX_COMMAND_ID: Final = 128
_MAX_WORD: Final = 40
_HEIGHT: Final = "m above the take-off place"


class Verb(StrEnum):
    """The commands there are."""

    ARM = "arm"
    DISARM = "disarm"
    TAKEOFF = "takeoff"
    LAND = "land"
    RETURN = "return"
    HOLD = "hold"
    GOTO = "goto"
    MODE = "mode"
    MOTOR_TEST = "motor_test"
    EMERGENCY_STOP = "emergency_stop"


_PARAMETERS: Final[dict[Verb, tuple[str, ...]]] = {
    Verb.ARM: (),
    Verb.DISARM: (),
    Verb.TAKEOFF: ("altitude", "speed"),
    Verb.LAND: ("immediate",),
    Verb.RETURN: (),
    Verb.HOLD: (),
    Verb.GOTO: ("latitude", "longitude", "altitude", "speed"),
    Verb.MODE: ("mode",),
    Verb.MOTOR_TEST: ("motor", "throttle", "seconds"),
    Verb.EMERGENCY_STOP: ("immediate",),
}
_UNUSED: Final = ("speed", "immediate")
"""Parameters that the messages of other programs carry and MAVLink's commands have no place for: accepted, reported."""

_OTHER_WORDS: Final = {"rtl": "return", "return_to_launch": "return"}

_NUMBERS: Final[dict[str, tuple[float, float, str]]] = {
    "latitude": (-90.0, 90.0, "degrees north"),
    "longitude": (-180.0, 180.0, "degrees east"),
    "speed": (0.1, 50.0, "m/s"),
    "throttle": (0.0, 1.0, "of full power"),
    "seconds": (0.1, 10.0, "s"),
}

_COMING_DOWN: Final = ("land", "return", "hold", "disarm", "emergency_stop")

_ACTIONS: Final = {"land_immediately": Verb.LAND, "emergency_stop": Verb.EMERGENCY_STOP}


@dataclass(frozen=True, slots=True)
class Order:
    """A checked command. ``altitude`` is metres above the take-off place, ``latitude`` and ``longitude`` are degrees,
    ``speed`` is m/s, ``throttle`` 0 to 1; ``motor`` counts from 1.
    """

    verb: Verb
    altitude: float | None = None
    command_id: str | int | None = None
    unused: tuple[str, ...] = ()
    latitude: float | None = None
    longitude: float | None = None
    speed: float | None = None
    mode: str | None = None
    motor: int = 1
    throttle: float = 0.0
    seconds: float = 1.0
    system: int | None = None
    """Which vehicle, by its MAVLink system id; None: the primary one."""

    @property
    def urgent(self) -> bool:
        """True for what overtakes everything else."""
        return self.verb is Verb.EMERGENCY_STOP


def order_from_command(payload: Any, *, max_altitude: float = MAX_ALTITUDE_M) -> Order:
    """Read ``{"command": ..., "parameters": {...}, "command_id": ..., "system": ...}``; raises OrderInvalid.

    Parameters may also stand beside ``command``, as older programs write them. An unknown parameter is refused rather
    than ignored: a misspelt "altitude" must not become a takeoff to some other height.
    """
    data = _object(payload, "data")
    verb = _choice(data, "command", {verb.value: verb for verb in Verb})
    given = _Given(verb, data)
    values: dict[str, Any] = {}
    match verb:
        case Verb.TAKEOFF:
            values["altitude"] = given.number("altitude", MIN_ALTITUDE_M, max_altitude, _HEIGHT)
            given.bounded("speed")
        case Verb.GOTO:
            values = {name: given.required(name) for name in ("latitude", "longitude")}
            values["altitude"] = given.number("altitude", MIN_ALTITUDE_M, max_altitude, _HEIGHT)
            values["speed"] = given.bounded("speed")
        case Verb.MODE:
            values["mode"] = given.word("mode")
        case Verb.MOTOR_TEST:
            values = {name: given.required(name) for name in ("throttle", "seconds")}
            values["motor"] = given.whole("motor", 1, 12)
    given.flag("immediate")
    unused = tuple(name for name in _UNUSED if name in given.parameters and name not in values)
    return Order(verb, command_id=_command_id(data), unused=unused, system=_system(data), **values)


class _Given:
    """The parameters of one command."""

    def __init__(self, verb: Verb, data: Mapping[str, Any]) -> None:
        named = _PARAMETERS[verb]
        given = data.get("parameters")
        self.parameters = (
            {} if given is None else {k: v for k, v in _object(given, "parameters").items() if v is not None}
        )
        self._places = {name: f"parameters.{name}" for name in self.parameters}
        for name in named:
            if data.get(name) is not None and name not in self.parameters:
                self.parameters[name] = data[name]
                self._places[name] = name
        unknown = sorted(self.parameters.keys() - set(named))
        if unknown:
            limit = ", ".join(named) if named else f"no parameters for {verb}"
            raise OrderInvalid(f"parameters.{unknown[0]}", f"is no parameter of {verb}", limit=limit)

    def number(self, name: str, low: float, high: float, unit: str) -> float:
        """A number within bounds, which must be there."""
        limit = f"a number from {low:g} to {high:g} ({unit})"
        if name not in self.parameters:
            raise OrderInvalid(f"parameters.{name}", "is missing", limit=limit)
        value = self.parameters[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:  # NaN is nowhere
            raise OrderInvalid(self._places[name], f"is {_shown(value)}", limit=limit)
        return float(value)

    def required(self, name: str) -> float:
        """A number with bounds of its own, which must be there."""
        return self.number(name, *_NUMBERS[name])

    def bounded(self, name: str) -> float | None:
        """The same, if it is there."""
        return self.required(name) if name in self.parameters else None

    def whole(self, name: str, low: int, high: int) -> int:
        """A whole number."""
        value = self.number(name, low, high, "whole")
        if value != int(value):
            raise OrderInvalid(self._places[name], f"is {value:g}", limit="a whole number")
        return int(value)

    def word(self, name: str) -> str:
        """A text that is not empty."""
        value = self.parameters.get(name)
        if not isinstance(value, str) or not value.strip() or len(value) > _MAX_WORD:
            problem = "is missing" if value is None else f"is {_shown(value)}"
            raise OrderInvalid(f"parameters.{name}", problem, limit=f"a text of at most {_MAX_WORD} characters")
        return value.strip()

    def flag(self, name: str) -> None:
        """True or false, if it is there."""
        if name in self.parameters and not isinstance(self.parameters[name], bool):
            raise OrderInvalid(self._places[name], f"is {self.parameters[name]!r}", limit="true or false")


def order_from_emergency(payload: Any) -> Order:
    """Read an ``emergency_command``: ``{"action": "land_immediately" | "emergency_stop", "system": ...}``; raises
    OrderInvalid.
    """
    data = _object(payload, "data")
    return Order(_choice(data, "action", _ACTIONS), command_id=_command_id(data), system=_system(data))


def _object(value: Any, field: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise OrderInvalid(field, f"is {_shown(value)}", limit="a JSON object")
    return value


def _choice(data: Mapping[str, Any], field: str, choices: Mapping[str, Verb]) -> Verb:
    allowed = ", ".join(choices)
    if field not in data:
        raise OrderInvalid(field, "is missing", limit=allowed)
    value = data[field]
    verb = choices.get(_OTHER_WORDS.get(value, value)) if isinstance(value, str) else None
    if verb is None:
        raise OrderInvalid(field, f"is {_shown(value)}", limit=allowed)
    return verb


def _command_id(data: Mapping[str, Any]) -> str | int | None:
    value = data.get("command_id")
    if value is None or (
        isinstance(value, str | int) and not isinstance(value, bool) and len(str(value)) <= _MAX_COMMAND_ID
    ):
        return value
    raise OrderInvalid(
        "command_id", f"is {_shown(value)}", limit=f"a text or number of at most {_MAX_COMMAND_ID} characters"
    )


def _system(data: Mapping[str, Any]) -> int | None:
    value = data.get("system")
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 255):
        return value
    raise OrderInvalid("system", f"is {_shown(value)}", limit="a MAVLink system id: a whole number from 1 to 255")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def comes_down(record: Record) -> bool:
    """Whether a record orders the vehicle down, or to stay: then it waits for no other one of its sender."""
    data = record.data
    if not isinstance(data, dict):
        return False
    if record.type == "emergency_command":
        return True
    word = data.get("command")
    return isinstance(word, str) and _OTHER_WORDS.get(word, word) in _COMING_DOWN
