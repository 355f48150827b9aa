"""Why a parameter has no confirmed value, in words and as a code."""

from __future__ import annotations

from typing import Final, NamedTuple

from petalbus.handlers.mavlink.params.values import ParamError


class Refusal(NamedTuple):
    """Why a parameter has no confirmed value. ``code`` is stable; ``error`` is the vehicle's MAV_PARAM_ERROR."""

    code: str
    reason: str
    error: int | None = None


def refused(key: str | int, error: int) -> Refusal:
    """The vehicle said PARAM_ERROR with ``error`` (a MAV_PARAM_ERROR)."""
    try:
        name = ParamError(error).name
    except ValueError:
        name = f"PARAM_ERROR_{error}"
    return Refusal(name, f"the vehicle refuses {key!r}: {name}", error)


ENCODING_UNKNOWN: Final = Refusal(
    "ENCODING_UNKNOWN",
    "this vehicle does not tell how it sends integers (neither PX4 nor ArduPilot, and no capability bit): an integer "
    "could arrive as another number",
)
