"""The simulated vehicle flies its mission, in pure time, and says hello to whoever comes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

from petalbus.handlers.mavlink.missions.items import MissionItem
from petalbus.handlers.mavlink.sim.airframe import Airframe
from petalbus.handlers.mavlink.sim.autopilot import ARDUPILOT, PX4, Autopilot, Mode, Result
from petalbus.handlers.mavlink.sim.flight import Flight
from petalbus.handlers.mavlink.sim.missions import Missions
from petalbus.handlers.mavlink.sim.param_sets import ARDUPILOT_PARAMS, PX4_PARAMS
from petalbus.handlers.mavlink.sim.params import ParamStore
from petalbus.handlers.mavlink.sim.pilot import Pilot, start
from petalbus.handlers.mavlink.sim.service import Onboard
from petalbus.handlers.mavlink.wire.dialect import load_dialect

from support.procs import Children

BOTH = pytest.mark.parametrize("autopilot", [PX4, ARDUPILOT], ids=["px4", "ardupilot"])


class Flown:
    """A flight, its mission, and the items that it reached."""

    def __init__(self, autopilot: Autopilot) -> None:
        rng = random.Random(3)
        params = ParamStore(PX4_PARAMS if autopilot is PX4 else ARDUPILOT_PARAMS, autopilot.encoding)
        self.flight = Flight(autopilot, Airframe(rng), params)
        onboard = Onboard(
            dialect=load_dialect(),
            system=1,
            component=1,
            rng=rng,
            send=lambda _: None,
            send_payload=lambda _id, _payload: None,
            since_boot=lambda: 1.0,
            note=lambda _: None,
        )
        self.missions = Missions(onboard, autopilot)
        self.reached: list[int] = []
        self.pilot = Pilot(self.flight, self.missions, reached=self.reached.append)
        home = autopilot
        x, y = round(home.latitude * 1e7), round(home.longitude * 1e7)
        orders = [(22, 0), (16, 900), (178, 0), (20, 0)]  # takeoff, ten metres north, change the speed, return
        if autopilot is ARDUPILOT:
            orders.insert(0, (16, 0))
        self.missions.items[0] = [
            MissionItem(seq, 6, command, x=x + north, y=y, z=5.0) for seq, (command, north) in enumerate(orders)
        ]

    def fly(self, seconds: float) -> None:
        for _ in range(round(seconds * 50)):
            self.pilot.step()
            self.flight.step(0.02)


@BOTH
def test_a_mission_is_flown_to_its_end(autopilot: Autopilot) -> None:
    """Each item is reached once and in order; the state goes from not started over active to complete."""
    flown = Flown(autopilot)
    assert flown.pilot.told()[0] == 2
    assert start(flown.flight, flown.missions) is Result.ACCEPTED
    assert flown.flight.airframe.armed is (autopilot is PX4), "PX4 arms by itself, ArduPilot waits for it"
    assert flown.flight.arm() is Result.ACCEPTED
    flown.fly(6)
    assert flown.pilot.told()[0] == 3
    assert flown.flight.airframe.height == pytest.approx(5.0, abs=1.5)
    flown.fly(40)
    first = 0 if autopilot is PX4 else 1
    assert flown.reached == list(range(first, first + 4))
    assert flown.pilot.told()[0] == 5
    assert not flown.flight.airframe.in_air
    assert abs(flown.flight.airframe.north) < 3.0, "it came home"


@BOTH
def test_a_mission_that_is_not_there_is_not_started(autopilot: Autopilot) -> None:
    flown = Flown(autopilot)
    flown.missions.items[0] = []
    refusal = start(flown.flight, flown.missions)
    assert refusal is (Result.DENIED if autopilot is PX4 else Result.FAILED)
    assert not flown.flight.airframe.armed


@BOTH
def test_another_mode_interrupts_it_and_it_goes_on(autopilot: Autopilot) -> None:
    flown = Flown(autopilot)
    flown.flight.arm()
    start(flown.flight, flown.missions)
    flown.fly(5)
    reached = list(flown.reached)
    flown.flight.set_mode(Mode.HOLD)
    flown.fly(5)
    assert flown.reached == reached
    assert flown.flight.airframe.in_air
    start(flown.flight, flown.missions)
    flown.fly(40)
    assert flown.pilot.told()[0] == 5


@BOTH
def test_a_mission_that_is_started_twice_goes_on(autopilot: Autopilot) -> None:
    """Stations set the mode and send the start, and repeat either when its answer is late."""
    flown = Flown(autopilot)
    flown.flight.arm()
    start(flown.flight, flown.missions)
    flown.fly(0.1)
    assert start(flown.flight, flown.missions) is Result.ACCEPTED
    flown.fly(46)
    assert flown.pilot.told()[0] == 5


async def test_it_calls_until_it_is_heard(children: Children, open_peer: Callable[..., Any]) -> None:
    """Ten heartbeats a second while nobody speaks, one at once to who is heard first, then one a second."""
    peer = await open_peer(system=255, component=190)
    endpoint = f"udpout:127.0.0.1:{peer.address[1]}"
    await children.module("petalbus.handlers.mavlink.sim", "--endpoint", endpoint, "--quiet")
    await peer.until(lambda: len(peer.of("HEARTBEAT")) >= 10, timeout=5.0)
    peer.heartbeat(autopilot=8)
    seen = len(peer.of("HEARTBEAT"))
    await peer.until(lambda: len(peer.of("HEARTBEAT")) > seen, timeout=0.9)
    seen = len(peer.of("HEARTBEAT"))
    await asyncio.sleep(0.9)
    assert len(peer.of("HEARTBEAT")) - seen <= 2
