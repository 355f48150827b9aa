"""All parameters of a vehicle: as a file, as what is known already, or as a list."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from petalbus.handlers.mavlink.files.ftp import FtpClient
from petalbus.handlers.mavlink.flight.vehicle import Vehicle
from petalbus.handlers.mavlink.params.client import ParamClient
from petalbus.handlers.mavlink.params.listing import ParamLister
from petalbus.handlers.mavlink.params.transfer import Item, Limits
from petalbus.handlers.mavlink.params.values import ParamType
from petalbus.handlers.mavlink.sim.autopilot import AUTOPILOTS
from petalbus.handlers.mavlink.sim.failures import Failures
from petalbus.handlers.mavlink.sim.node import SimOptions, SimVehicle
from petalbus.handlers.mavlink.wire.calls import Calls
from petalbus.handlers.mavlink.wire.link import Link

REAL_NUMBER = 1362
LIMITS = Limits(window=20, resend=0.5, retries=20)


class Ground:
    """A station that hears a simulated vehicle."""

    def __init__(self, link: Link, sim: SimVehicle, client: ParamClient, lister: ParamLister) -> None:
        self.link = link
        self.sim = sim
        self.client = client
        self.lister = lister

    def values(self) -> dict[str, bytes]:
        """What the vehicle has."""
        store = self.sim.params.store
        return {name: store.entry(name, index=0).raw for name in store.names}


@pytest.fixture
async def hear() -> AsyncIterator[Callable[..., Any]]:
    """``await hear("px4", loss=0.1)``."""
    async with AsyncExitStack() as stack:

        async def one(kind: str, *, more: int = 0, wrong_echo: float = 0.0, **failures: float) -> Ground:
            def take(frames: Any, _mono: int) -> None:
                vehicle.on_frames(frames)
                client.on_frames(frames)
                calls.on_frames(frames)

            def payload(msgid: int, data: bytes, system: int) -> int:
                return link.send_payload(msgid, data, system=system)

            link = Link("udpin:127.0.0.1:0", on_frames=take)
            vehicle = Vehicle(lambda message, system: link.send(message, system=system), dialect=link.dialect)
            client = ParamClient(payload, vehicle, system=2, component=140)
            calls = Calls(
                lambda message, system: link.send(message, system=system),
                payload,
                dialect=link.dialect,
                system=2,
                component=140,
            )
            await stack.enter_async_context(link)
            local: Any = link.transport
            options = SimOptions(
                endpoint=f"udpout:127.0.0.1:{local.local[1]}",
                autopilot=AUTOPILOTS[kind],
                more_params=more,
                wrong_echo=wrong_echo,
                failures=Failures(**failures),
            )
            sim = await stack.enter_async_context(SimVehicle(options))
            flying = asyncio.create_task(sim.fly(), name="fly")
            stack.push_async_callback(lambda: asyncio.gather(flying, return_exceptions=True))
            stack.callback(flying.cancel)
            assert await vehicle.wait_connected(20.0)
            return Ground(link, sim, client, ParamLister(client, FtpClient(calls, vehicle), vehicle))

        yield one


def raw(values: dict[str, Any]) -> dict[str, bytes]:
    return {name: value.raw for name, value in values.items()}


@pytest.mark.parametrize("loss", [0.0, 0.2])
async def test_ardupilots_parameters_come_as_a_file(hear: Callable[..., Any], loss: float) -> None:
    """As many as a real vehicle has, byte for byte what the list would tell; also over a bad wire, in two seconds."""
    ground = await hear("ardupilot", more=REAL_NUMBER, loss=loss)
    begun = time.monotonic()
    values = await ground.lister.list_all(timeout=20.0)
    took = time.monotonic() - begun
    assert ground.lister.how == "file"
    assert raw(values) == ground.values()
    assert took < 4.0  # two are meant; a busy machine may take a little longer
    one = next(iter(values.values()))
    assert one.total == len(values)


async def test_types_that_the_file_told_are_known(hear: Callable[..., Any]) -> None:
    """An INT16 is set as such at once."""
    ground = await hear("ardupilot")
    values = await ground.lister.list_all(timeout=10.0)
    name = next(name for name, value in values.items() if value.param_type == ParamType.INT16)
    transfer = await ground.client.write([Item(name, value=3)], limits=LIMITS, timeout=5.0)
    assert transfer.values[name].param_type == ParamType.INT16


async def test_what_is_known_holds_until_something_changes(hear: Callable[..., Any]) -> None:
    """PX4's number for all of them is asked for; the list only where it is another one."""
    ground = await hear("px4", more=200)
    first = await ground.lister.list_all(timeout=20.0)
    assert (ground.lister.how, raw(first)) == ("list", ground.values())
    sent = ground.link.statistics()["sent"]
    assert raw(await ground.lister.list_all(timeout=20.0)) == ground.values()
    assert ground.lister.how == "known"
    assert ground.link.statistics()["sent"] - sent <= 2
    await ground.client.write([Item("COM_DISARM_LAND", value=7.5)], limits=LIMITS, timeout=5.0)
    again = await ground.lister.list_all(timeout=20.0)
    assert (ground.lister.how, raw(again)) == ("list", ground.values())


async def test_where_the_file_cannot_be_had_it_is_the_list(hear: Callable[..., Any]) -> None:
    """A damaged file, and a vehicle that has none."""
    ground = await hear("ardupilot")
    server: Any = next(service for service in ground.sim.services if hasattr(service, "extra"))
    server.extra = lambda path: b"nonsense" if path.startswith("@PARAM") else None
    assert raw(await ground.lister.list_all(timeout=20.0)) == ground.values()
    assert ground.lister.how == "list"
    server.extra = None
    assert raw(await ground.lister.list_all(timeout=20.0)) == ground.values()


@pytest.mark.parametrize("kind", ["px4", "ardupilot"])
async def test_what_goes_wrong_at_the_vehicle_is_not_taken_for_set(hear: Callable[..., Any], kind: str) -> None:
    """Wrong echoes, messages out of order and twice: each is confirmed as it is, or refused; never silently missing."""
    ground = await hear(kind, more=40, loss=0.1, duplicate=0.1, reorder=0.3, wrong_echo=0.5)
    names = [name for name in ground.sim.params.store.names if name.startswith("SIM_P")]
    items = [Item(name, value=float(place), kind=ParamType.REAL32) for place, name in enumerate(names)]
    transfer = await ground.client.write(items, limits=Limits(window=20, resend=0.3, retries=60), timeout=40.0)
    assert set(transfer.values) | set(transfer.refusals) == set(names)
    for name, value in transfer.values.items():
        assert ground.values()[name] == value.raw, "what is told as set is set"
