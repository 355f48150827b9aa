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
from petalbus.daemon.bus.errors import HandlerError
from petalbus.daemon.bus.options import BusOptions
from petalbus.handlers.mqtt import words
from petalbus.handlers.mqtt.dispatch import CommandDispatch
from petalbus.handlers.mqtt.ingress import Ingress
from petalbus.handlers.mqtt.options import MqttOptions
from petalbus.handlers.mqtt.transport import Incoming
from petalbus.petals.proxies.mqtt.commands import _LatestStop
from petalbus.schemas.record import Record
from petalbus.schemas.stamps import BOOT_ID, boot_clock_ns
from petalbus.schemas.vocabulary import Priority

from .place import Place
from support.servers import RealServer

Give = Callable[[str, str], Any]
REFUSED: dict[str, str] = {}
"""Error codes of the commands that were not run, by their messageIds."""

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


OTHER = """
import threading, time
BEGUN, GATE = [], threading.Event()
class P(Petal):
    name, version = "other", "1.0"
    use_mqtt_proxy = True
    @mqtt_action("emergency_stop", cpu_heavy=True)
    async def emergency_stop(self, topic, message):
        BEGUN.append(message["messageId"])
        GATE.wait(30)
"""


@pytest.fixture
async def give(server: RealServer, bus_name: str) -> AsyncIterator[Give]:
    """``await give(command, messageId)``: as the broker brings it."""

    async def respond(device: str, message_id: str, data: dict[str, Any], *, name: str | None = None) -> None:
        REFUSED[message_id] = data["error_code"]

    REFUSED.clear()

    async with Bus(server.url, app=words.APP, bus=bus_name, options=BusOptions(stop_grace=0.2)) as link:
        ingress = Ingress(link, MqttOptions(), respond=respond)
        dispatch = CommandDispatch(link, respond=respond, installed=lambda: ("flight", "other"), deadline=60)
        dispatch.register()
        await link.listen()
        running = asyncio.create_task(dispatch.run(), name="dispatch")

        async def give(command: str, message_id: str) -> None:
            raw = orjson.dumps({"command": command, "messageId": message_id, "waitResponse": True})
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
    also where every thread for computing handlers is taken. What came before it and had not begun is not run (S-243).
    """
    who_we_are(place)
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
        assert not REFUSED
        await give("flight/goto", "after")
        flight.GATE.set()
        flight.THREADS.set()
        await until(lambda: len(begun) == 19, "what came after the stop runs")
        await until(lambda: len(REFUSED) == 4, f"what came before it and had not begun does not: {REFUSED}")
        assert dict(REFUSED) == {f"goto{number}": "STOPPED_MEANWHILE" for number in range(12, 16)}
        assert [name for name, _ in begun[16:]] == [
            "flight/emergency_stop",
            "flight/computed/land_immediately",
            "after",
        ]
    finally:
        flight.GATE.set()
        flight.THREADS.set()


def who_we_are(place: Place) -> None:
    told = {"thing": {"thingName": "Instance-m1", "lastReported": {"organizationId": "ORG1"}}}
    (place.folder / "thing.json").write_text(json.dumps(told))


async def test_other_work_stays_within_its_limit(place: Place, ground: Bus, give: Give) -> None:
    """S-210: petals_concurrency holds, however many a handler would run at once; commands have places of their own."""
    who_we_are(place)
    place.petal("flight", FLIGHT)
    await place.start(petals_concurrency=1)
    await place.until("flight", "running")
    flight = sys.modules["flight"]
    try:
        for number in range(6):
            await ground.send("flight", "busy", {}, key=f"busy{number}")
        await until(lambda: flight.BUSY, "the first one runs")
        for number in range(16):
            await give("flight/goto", f"goto{number}")
        await until(lambda: len(flight.BEGUN) == 16, f"commands run beside it: {flight.BEGUN}")
        assert len(flight.BUSY) == 1, "one at a time"
        flight.GATE.set()
        await until(lambda: len(flight.BUSY) == 6, "in the end all of them ran")
    finally:
        flight.GATE.set()


async def test_the_stops_of_another_petal_hold_up_none(place: Place, give: Give) -> None:
    """C-15: stops that compute have threads of their petal's own."""
    who_we_are(place)
    place.petal("flight", FLIGHT)
    place.petal("other", OTHER)
    await place.start()
    await place.until("flight", "running")
    await place.until("other", "running")
    flight, other = sys.modules["flight"], sys.modules["other"]
    try:
        for number in range(4):
            await give("other/emergency_stop", f"other{number}")
        await until(lambda: len(other.BEGUN) == 4, f"four threads compute: {other.BEGUN}")
        asked = time.monotonic()
        await give("flight/computed/land_immediately", "1")
        await until(lambda: flight.BEGUN, "it begins")
        assert flight.BEGUN[0][1] - asked < 0.5
    finally:
        other.GATE.set()


def test_a_stop_says_nothing_of_a_later_stream() -> None:
    """S-243: the bus's server came back empty, and its clock is behind: two minutes later commands are run again. What
    was offered before the stop is not, however long it has waited.
    """
    now = boot_clock_ns()

    def offer(place: str, later_s: int, priority: Priority = Priority.NORMAL) -> Record:
        raw = orjson.dumps({"place": place, "payload": {"command": "goto"}})
        mono = now + later_s * 10**9
        return Record(
            id="1", type=words.COMMAND, source="mqtt", mono=mono, boot_id=BOOT_ID, priority=priority, data=raw
        )

    stop = _LatestStop()
    stop.note(offer("9000-0", 0, Priority.CRITICAL))
    for place, later in (("8999-0", -600), ("8999-9", 0), ("5000-0", 60)):
        with pytest.raises(HandlerError, match="a stop came after"):
            stop.check(offer(place, later))
    stop.check(offer("9000-1", 0))
    stop.note(offer("8000-0", 1, Priority.CRITICAL))
    with pytest.raises(HandlerError):
        stop.check(offer("8500-0", 0))  # an earlier stop that is late takes nothing back
    stop.check(offer("5000-0", 200))
    stop.note(offer("5001-0", 200, Priority.CRITICAL))
    with pytest.raises(HandlerError):
        stop.check(offer("5000-0", -10))
    stop.check(offer("5002-0", 201))
