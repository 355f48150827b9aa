"""`restart`, as the cloud orders it: the daemon stops in order and comes back as the same process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.options import BusOptions
from petalbus.daemon.runtime import built_in

from .conftest import Buses, Cli
from support.servers import poll_until


async def arrive(data: Path, message: dict[str, Any]) -> None:
    """As the link stores a command."""
    topic = "org/ORG1/device/Instance-m1/command"
    async with Bus(f"unix://{data}/bus.sock", app="mqtt", bus="petalbus", options=BusOptions(presence=False)) as bus:
        await bus.publish("mqtt.rx", "mqtt.message", {"topic": topic, "payload": message, "qos": 1})


def test_the_daemon_restarts_once_when_it_is_told_to(buses: Buses, cli_on: Callable[[Path], Cli]) -> None:
    """S-186, S-187: the answer is stored first; the same command does not restart it again."""
    daemon = buses.up("--set", "machine_id=m1", "--set", "mqtt_transport=off")
    first = daemon.ready()
    message = {"command": "restart", "messageId": "r1", "waitResponse": True}
    asyncio.run(arrive(daemon.data, message))
    again = daemon.ready()
    cli = cli_on(daemon.data)
    assert again["pid"] == first["pid"], "it is the same process"
    stopping = [event for event in daemon.events if event["event"] == "stopping"]
    assert [event["signal"] for event in stopping] == ["restart"]

    def mqtt_runs() -> bool:
        status = cli.json("request", "petalbus", "status_request", "{}")["data"]
        return bool(status["parts"]["mqtt"]["state"] == "running")

    poll_until(mqtt_runs, "the link runs again")
    assert [event["event"] for event in daemon.events].count("stopping") == 1, "it is told once, and done once"


@pytest.mark.parametrize(
    ("vehicles", "code"),
    [
        ([{"armed": True, "mode": "AUTO"}], "VEHICLE_ARMED"),
        ([{"armed": False}, {"armed": True}], "VEHICLE_ARMED"),
        (None, "VEHICLE_UNKNOWN"),
        ([{"armed": False}], None),
        ([], None),
    ],
)
async def test_it_is_not_restarted_under_a_vehicle_that_may_be_flying(
    vehicles: list[dict[str, Any]] | None, code: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S-186, S-187: an armed vehicle keeps its bus, also when it was armed just now."""
    monkeypatch.setattr(built_in, "_PAUSE_S", 0.01)
    restarted: list[int] = []
    ours = built_in.BuiltIns(uptime=lambda: 12.5, vehicles=lambda: vehicles, restart=lambda: restarted.append(1))
    told = await ours.commands["restart"]({})
    assert told.get("error_code") == code
    status = await ours.commands["get_status"]({})
    assert (status["status"], status["uptime"]) == ("operational", 12.5)
    if code is None and vehicles:
        vehicles[0]["armed"] = True
    await asyncio.sleep(0.05)
    assert restarted == ([1] if code is None and not vehicles else [])
