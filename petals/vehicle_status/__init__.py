"""The petal ``vehicle-status``: the vehicle's latest telemetry as one state, its presence, and alerts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from petalbus.petals.vehicle_status.petal import VehicleStatusPetal

__all__ = ["VehicleStatusPetal"]


def __getattr__(name: str) -> Any:
    if name == "VehicleStatusPetal":
        from petalbus.petals.vehicle_status.petal import VehicleStatusPetal  # noqa: PLC0415  # loaded when it is used

        return VehicleStatusPetal
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
