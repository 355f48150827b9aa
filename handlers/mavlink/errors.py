"""What can go wrong between the bus and a vehicle.

MavlinkError
├── EndpointError           the endpoint's text makes no sense (also a ValueError)
├── DialectError            no such dialect, message or field (also a ValueError)
├── LinkError               the endpoint cannot be opened
├── OrderInvalid            a command's payload was refused before anything was sent (also a ValueError)
├── OrderNotAllowed         its sender may not order this; nothing was sent
├── OrderNotPossible        the vehicle's state forbids it; nothing was sent
├── OrderOvertaken          an order to come down arrived before the takeoff command left; it was not sent
├── ParamsIncomplete        the list of all parameters has gaps after the time allowed
├── NotConnected            there is no vehicle; nothing was sent
├── VehicleBusy             too much is under way with the vehicle already; nothing was sent
└── CommandOutcomeUnknown   the command was sent, its outcome cannot be known; it is not sent again
"""

from __future__ import annotations

from typing import Any


class MavlinkError(Exception):
    """Base of the errors of this handler. ``code`` is stable; ``detail`` goes into an error reply."""

    code = "MAVLINK_ERROR"

    @property
    def detail(self) -> dict[str, Any]:
        """More about it, for a program."""
        return {}


class EndpointError(MavlinkError, ValueError):
    """The endpoint's text is not understood."""

    code = "ENDPOINT_INVALID"


class DialectError(MavlinkError, ValueError):
    """The dialect, message or field does not exist; the text says which ones do."""

    code = "DIALECT_INVALID"


class LinkError(MavlinkError):
    """The endpoint cannot be opened."""

    code = "LINK_UNAVAILABLE"


class OrderInvalid(MavlinkError, ValueError):
    """A command's payload is wrong. ``field`` names the place, ``limit`` what is allowed there."""

    code = "COMMAND_INVALID"

    def __init__(self, field: str, problem: str, *, limit: str) -> None:
        self.field = field
        self.problem = problem
        self.limit = limit
        super().__init__(f"field {field!r}: {problem} (allowed: {limit})")

    @property
    def detail(self) -> dict[str, Any]:
        """The field and what is allowed there."""
        return {"field": self.field, "problem": self.problem, "allowed": self.limit}


class NotConnected(MavlinkError):
    """No vehicle is connected; nothing was sent."""

    code = "VEHICLE_NOT_CONNECTED"


class VehicleBusy(MavlinkError):
    """Too much is under way with the vehicle already, or for too long. Nothing was sent."""

    code = "VEHICLE_BUSY"


class OrderNotAllowed(MavlinkError):
    """Its sender may not order this. Nothing was sent."""

    code = "COMMAND_NOT_ALLOWED"


class OrderNotPossible(MavlinkError):
    """The order is right, but not now: the vehicle's state forbids it. Nothing was sent."""

    code = "COMMAND_NOT_POSSIBLE"


class OrderOvertaken(MavlinkError):
    """An order of several commands was given up between two of them, because an opposite order came."""

    code = "COMMAND_OVERTAKEN"


class ParamsIncomplete(MavlinkError):
    """Not all parameters came. ``heard`` of ``total`` did (None: the vehicle did not answer at all)."""

    code = "PARAMS_INCOMPLETE"

    def __init__(self, heard: int, total: int | None, timeout: float) -> None:
        self.heard = heard
        self.total = total
        super().__init__(f"{heard} of {'?' if total is None else total} parameters came within {timeout:g} s")

    @property
    def detail(self) -> dict[str, Any]:
        """How many came, of how many."""
        return {"heard": self.heard, "total": self.total}


class CommandOutcomeUnknown(MavlinkError):
    """The command may or may not have been executed. ``sent`` says how often it left."""

    code = "OUTCOME_UNKNOWN"

    def __init__(self, message: str, *, sent: int = 1) -> None:
        self.sent = sent
        super().__init__(message)

    @property
    def detail(self) -> dict[str, Any]:
        """How often the command left."""
        return {"outcome": "unknown", "times_sent": self.sent}
