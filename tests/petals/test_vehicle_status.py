"""The petal ``vehicle-status``: with the simulated vehicle over UDP end to end, and its rules one by one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from petalbus import Record
from petalbus.handlers.mavlink import MavlinkHandler
from petalbus.handlers.mavlink.sim.autopilot import ARDUPILOT, PX4
from petalbus.handlers.mavlink.sim.node import SimOptions, SimVehicle
from petalbus.handlers.mavlink.wire.dialect import Packer, load_dialect
from petalbus.handlers.mavlink.wire.framing import Frame
from petalbus.petals.vehicle_status import VehicleStatusPetal, names
from petalbus.petals.vehicle_status.alerts import Alerts, Change, Condition, Limits
from petalbus.petals.vehicle_status.state import Quality, VehicleState
from petalbus.testing import Faults, PetalHarness, RealBus

pytest_plugins = ["petalbus.petals.testing.plugin"]

QUICK = Limits(battery_after=1.0, gps_after=0.3, link_after=1.6, link_back_after=0.5)


class Quickly(VehicleStatusPetal):
    limits = QUICK


@dataclass
class Flight:
    """The petal, and a simulated vehicle behind the MAVLink handler."""

    h: PetalHarness[VehicleStatusPetal]
    sim: SimVehicle
    flying: asyncio.Task[None]

    async def status(self) -> dict[str, Any]:
        status: dict[str, Any] = (await self.h.request("status_request", {})).data
        return status

    async def until(self, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Ask until the status is so."""
        end = time.monotonic() + 10
        while not condition(status := await self.status()):
            assert time.monotonic() < end, status
            await asyncio.sleep(0.05)
        return status

    async def alert(self, name: str, *, active: bool) -> Record:
        def fits(record: Record) -> bool:
            details = record.data["details"]
            return (details["alert"], details["active"]) == (name, active)

        return await self.h.expect(type="alert", place="topic:alerts", where=fits, within=10)


Open = Callable[..., Awaitable[Flight]]


@pytest.fixture
async def open_flight(real_bus: RealBus) -> AsyncIterator[Open]:
    async with AsyncExitStack() as stack:

        async def open_one(petal: type[VehicleStatusPetal] = Quickly, **options: Any) -> Flight:
            autopilot = options.pop("autopilot", PX4)
            await stack.enter_async_context(real_bus)
            vehicle = await stack.enter_async_context(real_bus.client("vehicle"))
            handler = await stack.enter_async_context(MavlinkHandler(vehicle, endpoint="udpin:127.0.0.1:0"))
            port = handler.link.transport.local[1]  # type: ignore[attr-defined]  # of the UDP transport
            h: PetalHarness[VehicleStatusPetal] = await stack.enter_async_context(
                PetalHarness(petal, bus=real_bus, **options)
            )
            sim = await stack.enter_async_context(SimVehicle(SimOptions(f"udpout:127.0.0.1:{port}", autopilot)))
            flying = asyncio.create_task(sim.fly(), name="sim.fly")
            stack.callback(flying.cancel)
            return Flight(h, sim, flying)

        yield open_one


@pytest.mark.parametrize(("autopilot", "mode"), [(PX4, "hold"), (ARDUPILOT, "stabilize")], ids=["px4", "ardupilot"])
async def test_the_state_of_a_simulated_vehicle(open_flight: Open, autopilot: Any, mode: str) -> None:
    flight = await open_flight(autopilot=autopilot)
    presence = await flight.h.expect(type="vehicle.presence", place="topic:broadcast")
    assert presence.data == {"vehicle": 1, "present": True, "state": "online"}
    status = await flight.until(lambda told: told.get("battery") and told.get("gps") and told.get("landed"))
    assert (status["vehicle"], status["connected"], status["autopilot"]) == (1, True, autopilot.name)
    assert (status["armed"], status["mode"], status["landed"], status["alerts"]) == (False, mode, "on_ground", [])
    place = status["position"]
    assert (place["lat"], place["lon"]) == pytest.approx((autopilot.latitude, autopilot.longitude), abs=1e-4)
    assert place["alt_m"] == pytest.approx(autopilot.altitude, abs=1)
    assert status["attitude"]["roll_deg"] == pytest.approx(0, abs=3)
    assert status["battery"]["percent"] == 100
    assert status["battery"]["volts"] == pytest.approx(16.8, abs=0.3)
    assert status["gps"]["fix"] == "3d"
    assert (status["gps"]["satellites"], status["gps"]["hdop"]) == (12, 0.7)
    assert status["link"]["quality_percent"] == 100
    assert status["link"]["heartbeat_age_s"] < 1.5
    assert max(status[part]["age_s"] for part in ("position", "attitude")) < 0.5
    over_http = (await flight.h.http.get("/status")).json()
    assert over_http.keys() == status.keys()
    only = await flight.h.request("status_request", {"fields": ["mode", "armed", "no_such"]})
    assert only.data == {"mode": mode, "armed": False, "no_such": None}


async def test_arming_and_flying_show(open_flight: Open) -> None:
    flight = await open_flight()
    await flight.until(lambda told: told.get("connected") and told.get("position"))
    command = {"command": "takeoff", "parameters": {"altitude": 2}}
    await flight.h.tester.request("vehicle", "command", command, timeout=10)
    status = await flight.until(lambda told: told["armed"] and told["position"]["above_home_m"] > 0.3)
    assert status["mode"] == "takeoff"
    assert status["position"]["down_m_s"] < 0


async def test_alerts_come_once_and_end_once(open_flight: Open) -> None:
    """Battery, GPS and link of the simulated vehicle go bad and good again, one after the other."""
    flight = await open_flight()
    await flight.until(lambda told: told.get("battery") and told.get("gps"))
    battery = flight.sim.flight.airframe.battery
    battery.consumed = battery.capacity * 0.8
    low = await flight.alert("battery_low", active=True)
    assert (low.data["severity"], low.data["message"]) == ("warning", "the battery is low: 20 % left")
    assert (low.data["details"]["vehicle"], low.data["details"]["battery_percent"]) == (1, 20)
    battery.consumed = 0.0
    await flight.alert("battery_low", active=False)

    build = flight.sim.streams._builders["GPS_RAW_INT"]
    flight.sim.streams._builders["GPS_RAW_INT"] = lambda: {**build(), "fix_type": 1}
    assert (await flight.alert("gps_lost", active=True)).data["details"]["fix"] == "no_fix"
    flight.sim.streams._builders["GPS_RAW_INT"] = build
    await flight.alert("gps_lost", active=False)

    flight.flying.cancel()
    lost = await flight.alert("link_lost", active=True)
    assert lost.data["severity"] == "critical"
    assert lost.data["details"]["heartbeat_age_s"] >= QUICK.link_after - 0.1
    gone = await flight.h.expect(type="vehicle.presence", where={"present": False})
    assert gone.data["state"] == "offline"
    status = await flight.status()
    assert (status["connected"], status["alerts"]) == (False, ["link_lost"])
    flight.flying = asyncio.create_task(flight.sim.fly(), name="sim.fly")
    await flight.alert("link_lost", active=False)
    await flight.h.expect(
        type="vehicle.presence", where=lambda one: one.data["present"] and one.stream_id > gone.stream_id
    )
    flight.flying.cancel()

    await flight.h.catch_up()
    alerts = [one.record.data["details"] for one in flight.h.records if one.place == "topic:alerts"]
    assert [(one["alert"], one["active"]) for one in alerts] == [
        (name, active) for name in ("battery_low", "gps_lost", "link_lost") for active in (True, False)
    ]
    assert [one["change"] for one in alerts] == [1, 2, 3, 4, 5, 6]


async def test_a_petal_that_was_away_knows_how_it_is_now(open_flight: Open) -> None:
    """History is skipped: a state that is long over is not shown, and warns nobody."""
    flight = await open_flight()
    await flight.until(lambda told: told.get("battery"))
    await flight.h.stop()
    battery = flight.sim.flight.airframe.battery
    battery.consumed = battery.capacity * 0.95
    await asyncio.sleep(2.2)  # two of the vehicle's own messages about its battery, which come once a second
    battery.consumed = 0.0
    handled = flight.h.tester.keys.topic("mavlink.rx")
    before = await flight.h.tester.call("XLEN", handled)
    await flight.h.start()
    status = await flight.until(lambda told: told.get("battery"))
    assert status["battery"]["percent"] == 100
    assert status["link"]["lost"] == 0
    assert flight.h.petal._state is not None
    assert flight.h.petal._state._quality.received < before / 2
    await flight.h.expect_none(type="alert", within=0.3)


async def test_it_goes_on_after_a_crash_and_lost_answers(open_flight: Open) -> None:
    flight = await open_flight(faults=Faults(seed=3, drop=0.3))
    await flight.until(lambda told: told.get("battery"))
    await flight.h.crash()
    status = await flight.until(lambda told: told.get("battery"))
    assert status["connected"]


async def test_an_alert_whose_answer_was_lost_is_published_again_with_the_same_number(open_flight: Open) -> None:
    flight = await open_flight(faults=Faults(seed=1, drop=1.0))
    await flight.until(lambda told: told.get("battery"))
    battery = flight.sim.flight.airframe.battery
    battery.consumed = battery.capacity * 0.8
    first = await flight.alert("battery_low", active=True)
    again = await flight.alert("battery_low", active=True)
    assert first.stream_id != again.stream_id
    assert first.data["details"]["change"] == again.data["details"]["change"] == 1


async def test_without_a_vehicle_it_says_so(real_bus: RealBus) -> None:
    async with PetalHarness(Quickly, bus=real_bus) as h:
        nothing = {"vehicle": None, "connected": False, "alerts": []}
        assert (await h.request("status_request", {})).data == nothing
        assert (await h.http.get("/status")).json() == nothing
        await h.publish("mavlink.rx", "mavlink.NONSENSE", {"no": "frame"})
        end = time.monotonic() + 5
        while not h.petal.invalid:
            assert time.monotonic() < end
            await asyncio.sleep(0.01)
        assert (await h.request("status_request", {})).data == nothing


# -- the rules, without time and wires --------------------------------------------------------------------------------


def frames(system: int = 1, component: int = 1) -> Callable[..., Frame]:
    dialect = load_dialect()
    packer = Packer(dialect, system=system, component=component)
    return lambda name, **fields: Frame.from_raw(packer.pack(dialect.message(name, **fields)))


def new_state() -> tuple[VehicleState, list[tuple[int, float]]]:
    samples: list[tuple[int, float]] = []
    return VehicleState(load_dialect(), lambda msgid, _fields, now: samples.append((msgid, now))), samples


def test_what_the_vehicle_does_not_know_is_none() -> None:
    state, _ = new_state()
    make = frames()
    state.take(make("HEARTBEAT", autopilot=12, type=2), 1.0)
    state.take(make("SYS_STATUS", voltage_battery=65535, current_battery=-1, battery_remaining=-1), 1.0)
    state.take(make("GPS_RAW_INT", fix_type=0, satellites_visible=255, eph=65535), 1.0)
    state.take(make("GLOBAL_POSITION_INT", hdg=65535), 1.0)
    state.take(make("ATTITUDE", roll=float("nan")), 1.0)
    told = state.snapshot(2.0, lost_after=4.0)
    assert told["battery"] == {"percent": None, "volts": None, "amperes": None, "age_s": 1.0}
    assert told["gps"] == {"fix": "no_gps", "satellites": None, "hdop": None, "age_s": 1.0}
    assert told["position"]["heading_deg"] is None
    assert told["attitude"]["roll_deg"] is None
    assert told["landed"] is None
    state.take(make("BATTERY_STATUS", battery_remaining=55), 2.0)
    assert state.snapshot(2.0, lost_after=4.0)["battery"]["percent"] == 55


def test_one_vehicle_is_followed_until_it_is_long_gone() -> None:
    state, samples = new_state()
    first, camera, station, second = frames(1), frames(1, 100), frames(255, 190), frames(2)
    state.take(station("HEARTBEAT", autopilot=8, type=6), 0.0)
    state.take(second("ATTITUDE"), 0.0)  # no heartbeat yet: nobody's
    assert state.system is None
    state.take(first("HEARTBEAT", autopilot=12, type=2), 1.0)
    state.take(second("HEARTBEAT", autopilot=3, type=2), 2.0)
    state.take(camera("HEARTBEAT", autopilot=8, type=30), 2.0)
    assert (state.system, samples) == (1, [(0, 1.0)])
    state.take(second("HEARTBEAT", autopilot=3, type=2), 40.0)
    assert state.system == 2
    assert state.snapshot(40.0, lost_after=4.0)["autopilot"] == "ardupilot"


def test_link_quality_counts_gaps_over_ten_seconds() -> None:
    quality = Quality()
    for seq in (254, 255, 0, 3, 3, 2):  # two missing, one twice, one late
        quality.frame(seq, 1.0)
    told = quality.snapshot(1.5)
    assert (quality.received, told["lost"], told["quality_percent"]) == (6, 2, 75.0)
    assert told["frames_per_second"] == 6.0
    assert quality.snapshot(5.0)["frames_per_second"] == 1.5
    assert quality.snapshot(20.0)["quality_percent"] is None


@pytest.mark.parametrize(
    ("autopilot", "kind", "custom", "name"),
    [
        (12, 2, 4 << 16 | 3 << 24, "hold"),
        (12, 2, 6 << 16, "offboard"),
        (12, 2, 99 << 16, "custom_99_0"),
        (3, 2, 4, "guided"),
        (3, 1, 4, "custom_4"),
        (3, 2, 99, "custom_99"),
    ],
)
def test_modes_have_their_ground_stations_names(autopilot: int, kind: int, custom: int, name: str) -> None:
    assert names.mode(autopilot, kind, custom) == name


def test_a_condition_needs_time_to_begin_and_to_end_and_ignores_trembling() -> None:
    condition = Condition(begin_after=2.0, end_after=1.0)

    def sample(value: float, now: float) -> bool:
        return condition.sample(bad=value <= 25, good=value >= 30, now=now)

    assert [sample(24, 0.0), sample(26, 1.0), sample(24, 1.5), sample(24, 3.0)] == [False] * 4  # interrupted
    assert sample(24, 3.5)
    assert condition.active
    trembling = [sample(value, 4.0 + n / 10) for n, value in enumerate((24, 26, 28, 24, 29, 30, 29))]
    assert trembling == [False] * 7
    assert [sample(30, 5.0), sample(31, 6.0)] == [False, True]
    assert not condition.active
    assert [sample(20, 7.0), sample(20, 60.0), sample(20, 62.0)] == [False, False, True]  # silence is no duration


def test_alerts_of_the_battery_have_two_levels() -> None:
    told: list[Change] = []
    alerts = Alerts(Limits(battery_after=1.0), told.append)
    for second, percent in enumerate([100, 25, 25, 11, 10, 9, 9, 20, 26, 26, 31, 31]):
        alerts.battery(percent, float(second))
    assert [(one.alert, one.active, one.severity) for one in told] == [
        ("battery_low", True, "warning"),
        ("battery_critical", True, "critical"),
        ("battery_critical", False, "info"),
        ("battery_low", False, "info"),
    ]


def test_a_gps_that_never_had_a_fix_has_lost_none() -> None:
    told: list[Change] = []
    alerts = Alerts(Limits(gps_after=1.0), told.append)
    for second, fix in enumerate([0, 1, 1, 1, 3, 3, 3, 1, 1, 3, 3]):
        alerts.gps(fix, names.fix(fix), float(second))
    assert [(one.alert, one.active) for one in told] == [("gps_lost", True), ("gps_lost", False)]


def test_limits_that_contradict_one_another_are_refused() -> None:
    with pytest.raises(ValueError, match="battery_low=35 < battery_ok=30"):
        Limits(battery_low=35)
