"""The services of the simulated vehicle: each answers messages of its own."""

from __future__ import annotations

from petalbus.handlers.mavlink.sim.autopilot import Autopilot
from petalbus.handlers.mavlink.sim.disk import Disk
from petalbus.handlers.mavlink.sim.service import Onboard, Service


def make_services(onboard: Onboard, autopilot: Autopilot, disk: Disk) -> list[Service]:  # noqa: ARG001  # they come
    """All of them, for one vehicle."""
    return []
