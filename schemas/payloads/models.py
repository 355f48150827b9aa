"""The payloads of the documented message types, one model each.

A payload keeps every member that its model does not name, so a newer or a foreign program may send more. What a model
does name must have the type and range given here: numbers are JSON numbers (never text) and finite, angles are degrees,
lengths metres, speeds metres a second, and times seconds since 1970 or an ISO 8601 text.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from petalbus.schemas.vocabulary import Priority

_ISO_8601: Final = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}([.,]\d{1,9})?)?([Zz]|[+-]\d{2}:?\d{2})?)?$"

Name = Annotated[str, Field(min_length=1, max_length=256)]
Latitude = Annotated[float, Field(ge=-90, le=90)]
Longitude = Annotated[float, Field(ge=-180, le=180)]
Altitude = Annotated[float, Field(ge=-1_000, le=100_000)]
Speed = Annotated[float, Field(ge=-1_000, le=1_000)]
Percent = Annotated[float, Field(ge=0, le=100)]
Seconds = Annotated[float, Field(ge=0, le=1e11)]
IsoTime = Annotated[str, Field(pattern=_ISO_8601, max_length=40)]


class Payload(BaseModel):
    """What all typed payloads share: unknown members are kept, known ones are taken at their word, not converted."""

    # strict, because a reader in another language gets the bytes as they were sent: text that this model would turn
    # into a number is still text there
    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class Coordinates(Payload):
    """A place: WGS 84 degrees, altitude in metres."""

    lat: Latitude
    lon: Longitude
    alt: Altitude | None = None


class CommandParameters(Payload):
    """The parameters that flight commands share; any other parameter may stand beside them."""

    altitude: Altitude | None = None
    speed: Speed | None = None
    lat: Latitude | None = None
    lon: Longitude | None = None
    immediate: bool | None = None


class Command(Payload):
    """``command``: do something. ``altitude`` (m) beside ``parameters`` is the short form of some callers."""

    command: Name
    command_id: Name | None = None
    parameters: CommandParameters | None = None
    altitude: Altitude | None = None


class CommandResponse(Payload):
    """``command_response``: what came of a command. ``status`` is usually ``success``, ``failed`` or ``error``."""

    status: Name | None = None
    command_id: Name | None = None
    result: Any = None
    message: str | None = None


class EmergencyCommand(Payload):
    """``emergency_command``: an action that must not wait, such as ``land_immediately``."""

    action: Name
    command_id: Name | None = None
    parameters: CommandParameters | None = None


class StatusRequest(Payload):
    """``status_request``: ask for a status, all of it or the named fields."""

    fields: Annotated[list[Name], Field(max_length=256)] | None = None


class Telemetry(Payload):
    """``telemetry``: one sample. ``battery_level`` is percent, or -1 where the vehicle does not know it."""

    timestamp: Seconds | IsoTime | None = None
    battery_level: Annotated[float, Field(ge=-1, le=100)] | None = None
    gps_coordinates: Coordinates | None = None
    altitude: Altitude | None = None
    speed: Speed | None = None
    system_status: Name | None = None


class Geofence(Payload):
    """A circle that the vehicle stays in; ``radius`` in metres."""

    enabled: bool | None = None
    center: Coordinates | None = None
    radius: Annotated[float, Field(gt=0, le=10_000_000)] | None = None


class SafetySettings(Payload):
    """What the vehicle does by itself; ``battery_low_threshold`` in percent."""

    battery_low_threshold: Percent | None = None
    auto_land_enabled: bool | None = None


class Configuration(Payload):
    """``configuration``: settings to take over; ``max_altitude`` in metres."""

    flight_mode: Name | None = None
    max_altitude: Annotated[float, Field(ge=0, le=100_000)] | None = None
    geofence: Geofence | None = None
    safety_settings: SafetySettings | None = None


class Alert(Payload):
    """``alert``: something a person should know. ``severity`` is a word such as ``warning`` or ``critical``."""

    severity: Annotated[str, Field(min_length=1, max_length=32)]
    message: Annotated[str, Field(min_length=1)]
    details: dict[str, Any] | None = None


class Ping(Payload):
    """``ping``: are you there? Carries nothing of its own."""


PAYLOADS: Final[Mapping[str, type[Payload]]] = MappingProxyType(
    {
        "command": Command,
        "command_response": CommandResponse,
        "emergency_command": EmergencyCommand,
        "status_request": StatusRequest,
        "telemetry": Telemetry,
        "configuration": Configuration,
        "alert": Alert,
        "ping": Ping,
    }
)
"""Record type -> payload model. Every other type is open: any JSON value goes."""


def default_priority(record_type: str, value: Any) -> Priority:
    """The priority that a record has when its sender names none: what stops an aircraft must not wait in a line."""
    if record_type == "command":
        stops = isinstance(value, Mapping) and value.get("command") == "emergency_stop"
        return Priority.CRITICAL if stops else Priority.NORMAL
    return Priority.CRITICAL if record_type == "emergency_command" else Priority.NORMAL
