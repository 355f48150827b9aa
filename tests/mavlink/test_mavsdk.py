"""MAVSDK, which others wrote, with the simulated vehicle: what it understands, our idea of the protocol is right in."""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from mavlink.independent import HOMES, SIM, Sdk, free_port, needs_mavsdk, wait_for
from petalbus.daemon.bus.client import Bus
from petalbus.handlers.mavlink.handler import MavlinkHandler

from support.procs import Children
from support.servers import RealServer

pytestmark = needs_mavsdk
KINDS = pytest.mark.parametrize("kind", ["px4", "ardupilot"])


async def with_sdk(children: Children, kind: str, use: Any, *options: str) -> None:
    """Run ``use(sdk)`` in a thread, with a vehicle of that kind."""
    port = free_port()
    await children.module(SIM, "--endpoint", f"udpout:127.0.0.1:{port}", "--autopilot", kind, *options)

    def talk() -> None:
        with Sdk(f"udpin://127.0.0.1:{port}") as sdk:
            use(sdk)

    await asyncio.wait_for(asyncio.to_thread(talk), 60)


def refused(call: Any, *arguments: Any) -> str:
    """The name of the result with which something is refused."""
    with pytest.raises(Exception, match="origin") as caught:
        call(*arguments)
    return str(caught.value.result.name)  # type: ignore[attr-defined]  # each part has an error of its own


def item(kind: str, seq: int, command: int, *, north: float = 0.0, height: float = 2.0) -> Any:
    """A mission's item; metres."""
    from mavsdk.plugins.mission_raw import MissionItem

    latitude, longitude, _ = HOMES[kind]
    x = round((latitude + north / 111_319.5) * 1e7)
    return MissionItem(seq, 6, command, int(seq == 0), 1, 0.0, 0.0, 0.0, math.nan, x, round(longitude * 1e7), height, 0)


def mission(kind: str) -> list[Any]:
    """Take off, fly five metres north, land; ArduPilot's begins with home."""
    orders = [(22, 0.0), (16, 5.0), (21, 5.0)]
    if kind == "ardupilot":
        orders.insert(0, (16, 0.0))
    return [item(kind, seq, command, north=north) for seq, (command, north) in enumerate(orders)]


@KINDS
async def test_parameters_and_plans(children: Children, kind: str) -> None:
    """Read, set, refuse and list parameters; exchange a mission, a fence and rally points."""
    real, whole = ("MPC_XY_VEL_MAX", "COM_RC_IN_MODE") if kind == "px4" else ("WP_SPD", "LOG_BITMASK")

    def use(sdk: Sdk) -> None:
        param = sdk.plugin("param")
        param.set_param_float(real, 7.5)
        param.set_param_int(whole, 2)
        assert (param.get_param_float(real), param.get_param_int(whole)) == (7.5, 2)
        assert refused(param.get_param_float, "NOPE_NOPE") == "DOES_NOT_EXIST"
        assert refused(param.get_param_int, real) == "WRONG_TYPE"
        everything = param.get_all_params()
        assert {one.name: one.value for one in everything.float_params}[real] == 7.5
        assert len(everything.int_params) + len(everything.float_params) > 20
        plans = sdk.plugin("mission_raw")
        plans.upload_mission(mission(kind))
        assert [one.command for one in plans.download_mission()][-3:] == [22, 16, 21]
        plans.set_current_mission_item(1)
        assert refused(plans.set_current_mission_item, 99) == "INVALID_ARGUMENT"
        plans.clear_mission()
        use_fence(sdk, kind)

    await with_sdk(children, kind, use)


def use_fence(sdk: Sdk, kind: str) -> None:
    """A polygon and a circle go there and come back."""
    from mavsdk.plugins.geofence import Circle, FenceType, GeofenceData, Point, Polygon

    latitude, longitude, _ = HOMES[kind]
    corners = [Point(latitude + north, longitude + east) for north, east in ((0.001, 0.0), (0.0, 0.001), (0.0, 0.0))]
    circle = Circle(Point(latitude, longitude), 100.0, FenceType.EXCLUSION)
    fence = sdk.plugin("geofence")
    fence.upload_geofence(GeofenceData([Polygon(corners, FenceType.INCLUSION)], [circle]))
    back = fence.download_geofence()
    assert [len(one.points) for one in back.polygons] == [3]
    assert [one.radius for one in back.circles] == [100.0]
    fence.clear_geofence()
    assert fence.download_geofence().polygons == []


@KINDS
async def test_files_logs_and_the_shell(children: Children, kind: str, tmp_path: Path) -> None:
    """MAVFTP both ways with and without bursts, checksums, folders and refusals; logs; PX4's shell."""
    logs = "/fs/microsd/log/2026-11-01/12_00_01.ulg" if kind == "px4" else "/APM/LOGS/00000001.BIN"
    name = logs.rpartition("/")[2]
    mine = tmp_path / "mine.bin"
    mine.write_bytes(bytes(range(256)) * 12)

    def use(sdk: Sdk) -> None:
        ftp = sdk.plugin("ftp")
        assert name in [entry.name for entry in ftp.list_directory(logs.rpartition("/")[0]).entries]
        assert refused(ftp.list_directory, "/nope") == "FILE_DOES_NOT_EXIST"
        for burst in (False, True):
            folder = tmp_path / str(burst)
            folder.mkdir()
            assert sdk.result_of(ftp.download_async, logs, str(folder), burst) == "SUCCESS"
            assert ftp.are_files_identical(str(folder / name), logs)
        ftp.create_directory("/new")
        assert refused(ftp.create_directory, "/new") == "FILE_EXISTS"
        assert sdk.result_of(ftp.upload_async, str(mine), "/new") == "SUCCESS"
        ftp.rename("/new/mine.bin", "/new/yours.bin")
        assert ftp.are_files_identical(str(mine), "/new/yours.bin")
        ftp.remove_file("/new/yours.bin")
        assert refused(ftp.remove_file, "/new/yours.bin") == "FILE_DOES_NOT_EXIST"
        ftp.remove_directory("/new")
        log_files = sdk.plugin("log_files")
        entries = log_files.get_entries()
        assert len(entries) == 3
        assert sdk.result_of(log_files.download_log_file_async, entries[0], str(tmp_path / "log")) == "SUCCESS"
        assert (tmp_path / "log").read_bytes() == (tmp_path / "True" / name).read_bytes()
        if kind == "px4":
            use_shell(sdk)

    await with_sdk(children, kind, use)


def use_shell(sdk: Sdk) -> None:
    from mavsdk.plugins.shell import Device

    shell, said = sdk.plugin("shell"), []
    shell.subscribe_receive(lambda told, _user=None: said.append(str(told)))

    def helped() -> bool:
        # asked again now and then: what comes before its subscription is in place MAVSDK drops
        if time.monotonic() >= asked[-1] + 2:
            asked.append(time.monotonic())
            shell.send("help\n", Device.SHELL)
        return "logger" in "".join(said)

    asked = [0.0]
    wait_for(helped)


async def test_flights_and_missions(children: Children) -> None:
    """Telemetry, takeoff, refusals, goto, return, landing; then a mission from its start to its end. Both at once."""
    await asyncio.gather(*(with_sdk(children, kind, lambda sdk, kind=kind: use_flight(sdk, kind)) for kind in HOMES))


def told(call: Any) -> Any:
    """What MAVSDK answers; None while it has not been told itself."""
    try:
        return call()
    except Exception as error:
        if "NOT_RECEIVED" not in str(getattr(error, "result", "")):
            raise
        return None


def use_flight(sdk: Sdk, kind: str) -> None:
    latitude, longitude, sea = HOMES[kind]
    telemetry, action, plans = sdk.plugin("telemetry"), sdk.plugin("action"), sdk.plugin("mission_raw")
    sdk.plugin("param").set_param_float("COM_DISARM_LAND" if kind == "px4" else "SIM_DISARM_LAND", 0.3)
    wait_for(telemetry.health_all_ok)
    wait_for(lambda: telemetry.position().absolute_altitude_m == pytest.approx(sea, abs=1))
    wait_for(lambda: telemetry.battery().remaining_percent > 90)
    info = sdk.plugin("info")
    wait_for(lambda: told(info.get_version) is not None)
    assert info.get_version().flight_sw_major == 1
    assert refused(action.takeoff) == ("COMMAND_DENIED" if kind == "px4" else "FAILED")
    action.set_takeoff_altitude(2.0)
    action.arm()
    action.takeoff()
    wait_for(lambda: telemetry.landed_state().name == "IN_AIR")
    assert refused(action.disarm) in ("COMMAND_DENIED", "FAILED")
    action.goto_location(latitude + 5e-5, longitude, sea + 2.0, 0.0)
    wait_for(lambda: telemetry.position().latitude_deg > latitude + 2e-5)
    action.return_to_launch()
    wait_for(lambda: telemetry.flight_mode().name == "RETURN_TO_LAUNCH")
    action.land()
    wait_for(lambda: not telemetry.armed())
    plans.upload_mission(mission(kind))
    if kind == "ardupilot":
        action.hold()  # it does not arm in the mode in which it came down
    action.arm()
    plans.start_mission()
    wait_for(lambda: plans.mission_progress().current >= 2)
    wait_for(lambda: telemetry.landed_state().name == "ON_GROUND")
    wait_for(plans.is_mission_finished)


async def test_two_stations_do_not_take_each_others_answers(
    children: Children, server: RealServer, bus_name: str
) -> None:
    """Our handler and MAVSDK on one vehicle, which tells both everything: each has its own answers, I4."""
    port = free_port()
    vehicle = await children.module(SIM, "--endpoint", f"udpin:127.0.0.1:{port}", "--journal", "-")
    async with AsyncExitStack() as stack:
        own = await stack.enter_async_context(Bus(server.url, app="vehicle", bus=bus_name))
        handler = MavlinkHandler(own, endpoint=f"udpout:127.0.0.1:{port}")
        await stack.enter_async_context(handler)
        bus = await stack.enter_async_context(Bus(server.url, app="ground", bus=bus_name))
        assert await handler.vehicle.wait_connected(15.0)
        busy, results = asyncio.Event(), []
        loop = asyncio.get_running_loop()

        def talk() -> None:
            with Sdk(f"udpout://127.0.0.1:{port}") as sdk:
                action, param = sdk.plugin("action"), sdk.plugin("param")
                loop.call_soon_threadsafe(busy.set)
                for number in range(15):
                    results.append(refused(action.takeoff))
                    param.set_param_float("MPC_XY_VEL_MAX", number)
                    assert param.get_param_float("MPC_XY_VEL_MAX") == number

        talking = asyncio.create_task(asyncio.to_thread(talk), name="mavsdk")
        async with asyncio.timeout(60):
            await busy.wait()
            while not talking.done():
                landed = await bus.request("vehicle", "command", {"command": "land"}, timeout=10)
                assert landed.data["status"] == "success"
                wanted = {"params": [{"name": "MPC_Z_VEL_MAX_UP", "value": 2.5}]}
                told = (await bus.request("vehicle", "mavlink.param.set", wanted, timeout=10)).data
                assert (list(told["values"]), told["refused"]) == (["MPC_Z_VEL_MAX_UP"], {})
            await talking
        assert results == ["COMMAND_DENIED"] * 15
        assert (await bus.request("vehicle", "mavlink.status", {}, timeout=10)).data["stray_acks"] == 0
        assert any('"MAV_CMD_NAV_LAND"' in line for line in vehicle.output)
