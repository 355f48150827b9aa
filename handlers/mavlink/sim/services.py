"""The services of the simulated vehicle: each answers messages of its own."""

from __future__ import annotations

from petalbus.handlers.mavlink.sim.autopilot import PX4, Autopilot
from petalbus.handlers.mavlink.sim.disk import Disk
from petalbus.handlers.mavlink.sim.ftp import FtpServer
from petalbus.handlers.mavlink.sim.logs import LogServer
from petalbus.handlers.mavlink.sim.made_files import made_file
from petalbus.handlers.mavlink.sim.missions import Missions
from petalbus.handlers.mavlink.sim.params import ParamStore
from petalbus.handlers.mavlink.sim.service import Onboard, Service
from petalbus.handlers.mavlink.sim.shell import ShellServer


def make_services(
    onboard: Onboard, autopilot: Autopilot, disk: Disk, params: ParamStore, missions: Missions
) -> list[Service]:
    """All of them, for one vehicle."""
    return [
        LogServer(onboard, autopilot, disk),
        FtpServer(onboard, autopilot, disk, extra=lambda path: None if autopilot is PX4 else made_file(path, params)),
        missions,
        *([ShellServer(onboard, disk)] if autopilot is PX4 else []),
    ]
