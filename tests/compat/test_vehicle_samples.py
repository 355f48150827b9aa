"""The samples about the vehicle, as they stand there, with the simulated vehicle over UDP."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.options import BusOptions
from petalbus.petals.hosting import PetalHost, PetalNotStarted
from petalbus.petals.proxies.mavlink import MavLinkExternalProxy

from . import spec
from .spec import PROXIES
from support.mavlink_rig import rig
from support.procs import Children
from support.servers import RealServer


def host(server: RealServer, bus_name: str, petal: type, proxy: MavLinkExternalProxy) -> PetalHost[Any]:
    def connect(app: str) -> Bus:
        return Bus(server.url, app=app, bus=bus_name, options=BusOptions(presence=False))

    return PetalHost(petal, {"ext_mavlink": proxy}, connect)


async def test_rebooting(server: RealServer, bus_name: str, children: Children, tmp_path: Path) -> None:
    """S-007, S-034, S-035, S-036, S-037: the autopilot is rebooted; before it is heard, that is told."""
    module = spec.load(spec.block(PROXIES, "class SystemControlPetal"), tmp_path)
    async with rig(server, bus_name) as made:
        early = await made.proxy(ready=False)
        lonely = host(server, bus_name, module.SystemControlPetal, early)
        with pytest.raises(PetalNotStarted) as waiting:
            await lonely.start()
        assert waiting.value.missing == ("ext_mavlink",)
        lonely.petal.get_proxy = lambda _name: early
        assert await lonely.petal.reboot_flight_controller() == {
            "status": "error",
            "reason": "MAVLink connection not established",
        }
        await made.sim(children, "--autopilot", "ardupilot")
        proxy = await made.proxy()
        running = host(server, bus_name, module.SystemControlPetal, proxy)
        await running.start()
        told = await running.petal.reboot_flight_controller()
        assert told["status"] == "rebooting"
        await running.stop()


async def test_rebooting_in_the_shortest_form(
    server: RealServer, bus_name: str, children: Children, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """S-035: without arguments, as the basic usage shows it."""
    module = spec.load(spec.block(PROXIES, "async def send_command"), tmp_path)
    async with rig(server, bus_name) as made:
        await made.sim(children, "--autopilot", "ardupilot")
        running = host(server, bus_name, module.YourPetal, await made.proxy())
        await running.start()
        await running.petal.send_command()
        assert "Autopilot rebooting" in capsys.readouterr().out
        await running.stop()


async def test_parameters(
    server: RealServer, bus_name: str, children: Children, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """S-038, S-039, S-040, S-041, S-045, S-046, S-047.

    What the vehicle confirmed is told, and what not; then the parameters are read.
    """
    code = spec.block(PROXIES, "class SystemControlPetal") + spec.block(PROXIES, "class ParameterConfigPetal")
    module = spec.load(code, tmp_path)
    async with rig(server, bus_name) as made:
        await made.sim(children, "--autopilot", "px4")
        running = host(server, bus_name, module.ParameterConfigPetal, await made.proxy())
        await running.start()
        with caplog.at_level(logging.INFO):
            told = await running.petal.configure_flight_parameters()
        names = {"NAV_ACC_RAD", "MPC_XY_VEL_MAX", "MPC_Z_VEL_MAX_UP", "COM_DISARM_LAND", "COM_ARM_WO_GPS"}
        assert set(told["confirmed"]) | set(told["failed"]) == names
        assert {"NAV_ACC_RAD", "MPC_XY_VEL_MAX", "MPC_Z_VEL_MAX_UP", "COM_ARM_WO_GPS"} <= set(told["confirmed"])
        assert f"Confirmed {len(told['confirmed'])}/5 parameters" in caplog.text
        read = await running.petal.read_flight_parameters(["NAV_ACC_RAD", "COM_ARM_WO_GPS", "NO_SUCH_PARAM"])
        assert set(read) == {"NAV_ACC_RAD", "COM_ARM_WO_GPS"}
        assert (read["NAV_ACC_RAD"]["value"], read["COM_ARM_WO_GPS"]["value"]) == (2.0, 1)
        assert set(read["NAV_ACC_RAD"]) >= {"name", "value", "raw", "type", "count", "index"}
        await running.stop()


async def test_the_documented_calls(server: RealServer, bus_name: str, children: Children) -> None:
    """S-035, S-042, S-043, S-044: the calls in the form that the document lists them."""
    async with rig(server, bus_name) as made:
        await made.sim(children, "--autopilot", "px4")
        proxy = await made.proxy()
        await spec.run(spec.block(PROXIES, "# Bulk parameter retrieval over lossy links"), mavlink_proxy=proxy)
        read = await proxy.get_params_bulk_lossy(["NAV_ACC_RAD", "MPC_XY_VEL_MAX"])
        assert {name: info["value"] for name, info in read.items()} == {"NAV_ACC_RAD": 2.0, "MPC_XY_VEL_MAX": 12.0}
