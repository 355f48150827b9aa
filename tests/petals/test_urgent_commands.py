"""What stops an aircraft does not wait: a real petal, whose places for commands are all taken."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest

from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.options import BusOptions
from petalbus.handlers.mqtt import words
from petalbus.handlers.mqtt.dispatch import CommandDispatch
from petalbus.handlers.mqtt.ingress import Ingress
from petalbus.handlers.mqtt.options import MqttOptions
from petalbus.handlers.mqtt.transport import Incoming

from .place import Place
from support.servers import RealServer

Give = Callable[[str, str], Any]

FLIGHT = """
import threading, time
BEGUN, BUSY, GATE, THREADS = [], [], asyncio.Event(), threading.Event()
class P(Petal):
    name, version = "flight", "1.0"
    use_mqtt_proxy = True
    @mqtt_action("goto")
    async def goto(self, topic, message):
        BEGUN.append((message["messageId"], time.monotonic()))
        await GATE.wait()
    @mqtt_action("scan", cpu_heavy=True)
    async def scan(self, topic, message):
        BEGUN.append((message["messageId"], time.monotonic()))
        THREADS.wait(30)
    @mqtt_action("emergency_stop")
    async def emergency_stop(self, topic, message):
        BEGUN.append((message["messageId"], time.monotonic()))
    @mqtt_action("computed/land_immediately", cpu_heavy=True)
    async def land(self, topic, message):
        BEGUN.append((message["messageId"], time.monotonic()))
    @on("busy", concurrency=None)
    async def busy(self, record):
        BUSY.append(1)
        await GATE.wait()
    @on("how")
    async def how(self, record): return {"begun": len(BEGUN)}
"""


@pytest.fixture
async def give(server: RealServer, bus_name: str) -> AsyncIterator[Give]:
    """``await give(command, messageId)``: as the broker brings it."""

    async def respond(device: str, message_id: str, data: dict[str, Any], *, name: str | None = None) -> None:
        raise AssertionError(data)

    async with Bus(server.url, app=words.APP, bus=bus_name, options=BusOptions(stop_grace=0.2)) as link:
        ingress = Ingress(link, MqttOptions(), respond=respond)
        dispatch = CommandDispatch(link, respond=respond, installed=lambda: ("flight",), deadline=60)
        dispatch.register()
        await link.listen()
        running = asyncio.create_task(dispatch.run(), name="dispatch")

        async def give(command: str, message_id: str) -> None:
            raw = orjson.dumps({"command": command, "messageId": message_id})
            await ingress.received(Incoming("org/ORG1/device/Instance-m1/command/edge", raw))

        yield give
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def until(condition: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, what
        await asyncio.sleep(0.005)


async def test_a_stop_runs_while_all_places_of_a_petal_are_taken(place: Place, ground: Bus, give: Give) -> None:
    """C-15, S-210: sixteen commands run at once, beside the petal's other work; a stop begins within half a second,
    also where every thread for computing handlers is taken.
    """
    told = {"thing": {"thingName": "Instance-m1", "lastReported": {"organizationId": "ORG1"}}}
    (place.folder / "thing.json").write_text(json.dumps(told))
    place.petal("flight", FLIGHT)
    await place.start(petals_concurrency=4)
    await place.until("flight", "running")
    flight = sys.modules["flight"]
    begun: list[tuple[str, float]] = flight.BEGUN
    try:
        for number in range(4):
            await give("flight/scan", f"scan{number}")
        await until(lambda: len(begun) == 4, f"four threads compute: {begun}")
        for number in range(16):
            await give("flight/goto", f"goto{number}")
        await until(lambda: len(begun) == 16, f"sixteen commands run: {begun}")
        reply = await ground.request("flight", "how", {}, timeout=5)
        assert reply.data == {"begun": 16}, "its other handlers have their own places"
        for number in range(4):
            await ground.send("flight", "busy", {}, key=f"busy{number}")
        await until(lambda: len(flight.BUSY) == 4, "no place is left")
        for command in ("flight/emergency_stop", "flight/computed/land_immediately"):
            asked = time.monotonic()
            await give(command, command)
            await until(lambda name=command: begun[-1][0] == name, f"{command} begins: {begun}")  # type: ignore[misc]  # a default binds it
            assert begun[-1][1] - asked < 0.5, f"{command} waited"
        assert len(begun) == 18, "the four others wait for a place"
        flight.GATE.set()
        flight.THREADS.set()
        await until(lambda: len(begun) == 22, "in the end all of them began")
    finally:
        flight.GATE.set()
        flight.THREADS.set()
