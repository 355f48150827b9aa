"""All parameters of a vehicle: as a file, as what is known already, or as a list."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from mavlink.ground import BOTH
from petalbus.handlers.mavlink.params.transfer import Item, Limits
from petalbus.handlers.mavlink.params.values import ParamType
from petalbus.handlers.mavlink.sim.autopilot import ARDUPILOT, PX4
from petalbus.handlers.mavlink.sim.failures import Failures
from petalbus.handlers.mavlink.sim.node import SimVehicle

REAL_NUMBER = 1362
LIMITS = Limits(window=20, resend=0.5, retries=20)


def has(sim: SimVehicle) -> dict[str, bytes]:
    """What the vehicle has."""
    store = sim.params.store
    return {name: store.entry(name, index=0).raw for name in store.names}


def raw(values: dict[str, Any]) -> dict[str, bytes]:
    return {name: value.raw for name, value in values.items()}


@pytest.mark.parametrize("loss", [0.0, 0.2])
async def test_ardupilots_parameters_come_as_a_file(open_ground: Callable[..., Any], loss: float) -> None:
    """As many as a real vehicle has, byte for byte what the list would tell; also over a bad wire, in two seconds."""
    ground, sim = await open_ground(ARDUPILOT, Failures(loss=loss), more_params=REAL_NUMBER)
    took = []
    for _ in range(3):
        begun = time.monotonic()
        values = await ground.lister.list_all(timeout=20.0)
        took.append(time.monotonic() - begun)
        assert ground.lister.how == "file"
        assert raw(values) == has(sim)
        if took[-1] < 2.0:
            break
    assert min(took) < 2.0, took  # the best of three: the machine may have been busy
    one = next(iter(values.values()))
    assert one.total == len(values)


async def test_types_that_the_file_told_are_known(open_ground: Callable[..., Any]) -> None:
    """An INT16 is set as such at once."""
    ground, _ = await open_ground(ARDUPILOT)
    values = await ground.lister.list_all(timeout=10.0)
    name = next(name for name, value in values.items() if value.param_type == ParamType.INT16)
    transfer = await ground.params.write([Item(name, value=3)], limits=LIMITS, timeout=5.0)
    assert transfer.values[name].param_type == ParamType.INT16


async def test_what_is_known_holds_until_something_changes(open_ground: Callable[..., Any]) -> None:
    """PX4's number for all of them is asked for; the list only where it is another one."""
    ground, sim = await open_ground(PX4, more_params=200)
    first = await ground.lister.list_all(timeout=20.0)
    assert (ground.lister.how, raw(first)) == ("list", has(sim))
    sent = ground.link.statistics()["sent"]
    assert raw(await ground.lister.list_all(timeout=20.0)) == has(sim)
    assert ground.lister.how == "known"
    assert ground.link.statistics()["sent"] - sent <= 2
    await ground.params.write([Item("COM_DISARM_LAND", value=7.5)], limits=LIMITS, timeout=5.0)
    again = await ground.lister.list_all(timeout=20.0)
    assert (ground.lister.how, raw(again)) == ("list", has(sim))


async def test_what_px4_changes_by_itself_is_not_told_as_known(open_ground: Callable[..., Any]) -> None:
    """Its number leaves out volatile parameters, which change at the end of a flight."""
    ground, sim = await open_ground(PX4)
    await ground.lister.list_all(timeout=20.0)
    sim.params.store.set_raw("LND_FLIGHT_T_LO", b"\x01\x02\x03\0")
    state = ground.vehicle.state
    state.base_mode |= 128  # armed meanwhile
    sim.flight.airframe.armed = True
    again = await ground.lister.list_all(timeout=20.0)
    assert (ground.lister.how, raw(again)) == ("list", has(sim))


@BOTH
async def test_a_parameter_that_appears_while_they_are_listed_is_not_left_out(
    open_ground: Callable[..., Any], autopilot: Any
) -> None:
    """It moves those behind it, and itself is never told: the list is asked for again."""
    ground, sim = await open_ground(autopilot, more_params=300)
    listing = asyncio.create_task(ground.params.list_all(timeout=20.0))
    async with asyncio.timeout(10.0):
        while sim.params._listing < 100:  # half-way
            await asyncio.sleep(0.001)
    sim.params.store.add("A_NEW_ONE", ParamType.REAL32, 1.5, place=3)
    values = await listing
    assert raw(values) == has(sim)
    assert {value.total for value in values.values()} == {len(values)}


async def test_a_parameter_that_appears_behind_ardupilots_last_one_is_found(open_ground: Callable[..., Any]) -> None:
    """Its list goes on telling the old total; who asks for one parameter hears the present one."""
    ground, sim = await open_ground(ARDUPILOT, more_params=100)
    listing = asyncio.create_task(ground.params.list_all(timeout=20.0))
    async with asyncio.timeout(10.0):
        while sim.params._listing < 50:  # half-way
            await asyncio.sleep(0.001)
    sim.params.store.add("Z_NEW_ONE", ParamType.REAL32, 1.5, place=len(sim.params.store))
    assert raw(await listing) == has(sim)


async def test_parameters_that_go_while_ardupilot_lists_them(open_ground: Callable[..., Any]) -> None:
    """Its list goes on telling the old total, and nobody answers for the last positions: it is asked for again."""
    ground, sim = await open_ground(ARDUPILOT, more_params=100)
    listing = asyncio.create_task(ground.params.list_all(timeout=20.0))
    async with asyncio.timeout(10.0):
        while sim.params._listing < 50:  # half-way
            await asyncio.sleep(0.001)
    del sim.params.store.names[-5:]
    assert raw(await listing) == has(sim)


async def test_where_the_file_cannot_be_had_it_is_the_list(open_ground: Callable[..., Any]) -> None:
    """A damaged file, and a vehicle that has none."""
    ground, sim = await open_ground(ARDUPILOT)
    server: Any = next(service for service in sim.services if hasattr(service, "extra"))
    server.extra = lambda path: b"nonsense" if path.startswith("@PARAM") else None
    assert raw(await ground.lister.list_all(timeout=20.0)) == has(sim)
    assert ground.lister.how == "list"
    server.extra = None
    assert raw(await ground.lister.list_all(timeout=20.0)) == has(sim)


@BOTH
async def test_what_goes_wrong_at_the_vehicle_is_not_taken_for_set(
    open_ground: Callable[..., Any], autopilot: Any
) -> None:
    """Wrong echoes, messages out of order and twice: each is confirmed as it is, or refused; never silently missing."""
    wire = Failures(loss=0.1, duplicate=0.1, reorder=0.3)
    ground, sim = await open_ground(autopilot, wire, more_params=40, wrong_echo=0.5)
    names = [name for name in sim.params.store.names if name.startswith("SIM_P")]
    items = [Item(name, value=float(place), kind=ParamType.REAL32) for place, name in enumerate(names)]
    transfer = await ground.params.write(items, limits=Limits(window=20, resend=0.3, retries=60), timeout=40.0)
    assert set(transfer.values) | set(transfer.refusals) == set(names)
    for name, value in transfer.values.items():
        assert has(sim)[name] == value.raw, "what is told as set is set"
