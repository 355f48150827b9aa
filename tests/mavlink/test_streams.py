"""A vehicle that sends heartbeats alone is asked for what is needed; what streams already is left as it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from mavlink.ground import BOTH, Flying, stop, until
from petalbus.daemon.config_vehicle import STREAMS
from petalbus.handlers.mavlink.fleet import Fleet
from petalbus.handlers.mavlink.flight.listening import SILENCES, Listening
from petalbus.handlers.mavlink.sim.autopilot import ARDUPILOT, PX4, Autopilot
from petalbus.handlers.mavlink.sim.node import SimOptions, SimVehicle
from petalbus.handlers.mavlink.streams import Streams, StreamTimes, read_streams
from petalbus.handlers.mavlink.wire.calls import Calls
from petalbus.handlers.mavlink.wire.framing import Frame
from petalbus.handlers.mavlink.wire.link import Link

WISHES = {"GLOBAL_POSITION_INT": 10.0, "ATTITUDE": 20.0, "SYS_STATUS": 5.0, "VFR_HUD": 5.0}
POSITION, ATTITUDE, STATUS = 33, 30, 1
SET_INTERVAL, GET_INTERVAL = 511, 510
QUICK = StreamTimes(pauses=(0.6, 0.6, 0.6), patience=2.0, look=0.1)


class Tower:
    """A link, its vehicles, and who asks them for streams."""

    def __init__(self, wishes: dict[str, float]) -> None:
        self.link = Link("udpin:127.0.0.1:0", on_frames=self._on_frames)
        self.calls = Calls(
            lambda message, system: self.link.send(message, system=system),
            lambda msgid, payload, system: self.link.send_payload(msgid, payload, system=system),
            dialect=self.link.dialect,
            system=2,
            component=140,
        )
        self.fleet = Fleet(self.link, self.calls)
        self.streams = Streams(self.fleet, self.calls, wishes, times=QUICK)
        self.came: dict[tuple[int, int], int] = {}
        self.journal: list[dict[str, Any]] = []

    def _on_frames(self, frames: Sequence[Frame], _mono: int) -> None:
        for frame in frames:
            self.came[frame.sysid, frame.msgid] = self.came.get((frame.sysid, frame.msgid), 0) + 1
        self.fleet.on_frames(frames)
        self.calls.on_frames(frames)
        self.streams.on_frames(frames)

    def count(self, msgid: int, system: int = 1) -> int:
        """How many of a message came."""
        return self.came.get((system, msgid), 0)

    def asked(self) -> list[int]:
        """The ids of the messages whose interval was set."""
        name = "MAV_CMD_SET_MESSAGE_INTERVAL"
        return [int(entry["params"][0]) for entry in self.journal if entry.get("command") == name]


@asynccontextmanager
async def tower(wishes: dict[str, float] | None = None) -> AsyncIterator[Tower]:
    made = Tower(WISHES if wishes is None else wishes)
    async with made.link:
        task = asyncio.create_task(made.streams.run(), name="test.streams")
        try:
            yield made
        finally:
            await stop(task)


@asynccontextmanager
async def flown(made: Tower, autopilot: Autopilot, *, quiet: bool = True, **options: Any) -> AsyncIterator[Flying]:
    endpoint = f"udpout:127.0.0.1:{made.link.transport.local[1]}"  # type: ignore[attr-defined]  # UDP's
    chosen = SimOptions(endpoint, autopilot=autopilot, quiet=quiet, **options)
    async with SimVehicle(chosen, journal=made.journal.append) as sim:
        task = asyncio.create_task(sim.fly(), name="test.sim")
        try:
            await made.fleet.wait_heard(chosen.system, 20.0)
            yield Flying(sim, task)
        finally:
            await stop(task)


@BOTH
async def test_a_quiet_vehicle_is_asked_once_and_again_after_a_reboot(autopilot: Any) -> None:
    """What is wished for comes at its rate; a boot makes the vehicle forget it, between two heartbeats too."""
    async with tower() as made, flown(made, autopilot) as vehicle:
        await until(lambda: made.count(POSITION) > 3 and made.count(ATTITUDE) > 3 and made.count(STATUS) > 1)
        assert sorted(made.asked()) == [1, 30, 33, 74]
        assert vehicle.sim.streams.interval_us(ATTITUDE) == 50_000
        await asyncio.sleep(2.5)
        assert len(made.asked()) == 4, "once in a connection"
        assert made.streams.describe() == {"1": {"asked": sorted(WISHES), "refused": []}}
        vehicle.sim._reboot()
        before = made.count(POSITION)
        await until(lambda: len(made.asked()) == 8 and made.count(POSITION) > before + 3)


async def test_each_vehicle_is_asked_for_itself() -> None:
    async with (
        tower() as made,
        AsyncExitStack() as stack,
    ):
        for system, quiet in ((1, True), (2, False), (3, True)):
            await stack.enter_async_context(flown(made, ARDUPILOT, quiet=quiet, system=system))
        await until(lambda: all(made.count(POSITION, system) > 3 for system in (1, 2, 3)))
        await until(lambda: made.streams.describe().get("2", {}).get("asked") == ["VFR_HUD"])
        assert made.streams.describe()["3"]["asked"] == sorted(WISHES)


async def test_what_streams_is_left_as_it_is() -> None:
    """Faster or slower than wished for; and what is off and set by nobody is asked for."""
    async with tower({"ATTITUDE": 4.0, "GPS_RAW_INT": 20.0, "ALTITUDE": 2.0}) as made, flown(made, PX4, quiet=False):
        await until(lambda: made.asked() == [141])
        await asyncio.sleep(1.5)
        assert made.asked() == [141]


async def test_what_is_set_and_says_nothing_yet_is_left_alone() -> None:
    """A position without satellites: PX4 sends none, at whatever rate it is set."""
    async with tower({"GLOBAL_POSITION_INT": 4.0, "SYS_STATUS": 2.0}) as made, flown(made, PX4) as vehicle:
        streams, send = vehicle.sim.streams, vehicle.sim.streams._send
        streams.set_interval(POSITION, 20_000, 0.0)
        streams._send = lambda message: None if message.get_msgId() == POSITION else send(message)
        await until(lambda: made.count(STATUS) > 2)
        await asyncio.sleep(1.5)
        assert made.asked() == [STATUS]
        assert streams.interval_us(POSITION) == 20_000


async def test_who_changes_a_rate_later_is_not_fought() -> None:
    async with tower() as made, flown(made, ARDUPILOT) as vehicle:
        await until(lambda: len(made.asked()) == 4 and made.count(POSITION) > 3)
        vehicle.sim.streams.set_interval(POSITION, -1, 0.0)
        vehicle.sim.streams.set_interval(ATTITUDE, 2_000_000, 0.0)
        await asyncio.sleep(3.5)
        assert len(made.asked()) == 4
        assert vehicle.sim.streams.interval_us(ATTITUDE) == 2_000_000


async def test_a_vehicle_without_intervals_is_asked_for_groups() -> None:
    wishes = {"GLOBAL_POSITION_INT": 5.0, "SYS_STATUS": 2.0, "GPS_RAW_INT": 3.0}
    async with tower(wishes) as made, flown(made, ARDUPILOT) as vehicle:
        vehicle.sim.commands.without = frozenset((SET_INTERVAL, GET_INTERVAL))
        await until(lambda: made.count(POSITION) > 3 and made.count(STATUS) > 3 and made.count(24) > 3)
        assert vehicle.sim.streams.interval_us(STATUS) == round(1e6 / 3)
        assert vehicle.sim.streams.interval_us(ATTITUDE) == -1, "nobody wished for that"


async def test_a_group_of_which_something_comes_keeps_its_rate() -> None:
    async with tower({"LOCAL_POSITION_NED": 1.0, "SYS_STATUS": 2.0}) as made, flown(made, ARDUPILOT) as vehicle:
        vehicle.sim.commands.without = frozenset((SET_INTERVAL,))
        vehicle.sim.streams.set_interval(POSITION, 100_000, 0.0)
        await until(lambda: made.count(STATUS) > 2)
        assert vehicle.sim.streams.interval_us(POSITION) == 100_000


async def test_asking_is_bounded() -> None:
    """No answer: three rounds, and not for ever. What the vehicle has not: once."""
    silent = frozenset((SET_INTERVAL, GET_INTERVAL))
    async with tower({"GLOBAL_POSITION_INT": 5.0}) as made, flown(made, PX4, silence=silent) as vehicle:
        vehicle.sim.streams._builders.pop("GLOBAL_POSITION_INT")
        await until(lambda: len(made.asked()) == 3)
        await asyncio.sleep(1.5)
        assert len(made.asked()) == 3
    async with tower({"WIND_COV": 5.0}) as made, flown(made, PX4):
        await until(lambda: made.streams.describe().get("1") == {"asked": [], "refused": ["WIND_COV"]})
        await asyncio.sleep(1.5)
        assert made.asked() == [231]


def test_what_is_wished_for_is_read() -> None:
    assert read_streams(STREAMS)["GLOBAL_POSITION_INT"] == 4.0
    assert read_streams(" Off ") == read_streams("") == read_streams("ATTITUDE=0") == {}
    with pytest.raises(ValueError, match="at most 100 messages a second"):
        read_streams("ATTITUDE=101")
    with pytest.raises(ValueError, match="MESSAGE=RATE"):
        read_streams("ATTITUDE")


def test_when_a_connection_begins() -> None:
    """Heartbeats that come back, a boot clock that goes back, and silence of all streams: that three times at most."""
    one = Listening({POSITION: 4.0, STATUS: 0.1}, patience=6.0)
    assert not one.begins(0.0, connected=False, boot_ms=None)
    assert one.begins(1.0, connected=True, boot_ms=None)
    assert one.missing() == [POSITION, STATUS]
    one.note(POSITION, 1.5)
    assert not one.begins(2.0, connected=True, boot_ms=60_000)
    assert not one.begins(3.0, connected=True, boot_ms=59_500), "that was late"
    one.note(POSITION, 3.5)
    assert one.begins(4.0, connected=True, boot_ms=800)
    assert one.missing() == [POSITION, STATUS]
    assert not one.begins(100.0, connected=True, boot_ms=800), "nothing was there that could have ended"
    now = 100.0
    for _ in range(SILENCES):
        one.note(POSITION, now)
        assert not one.begins(now + 5.9, connected=True, boot_ms=None)
        now += 6.1
        assert one.begins(now, connected=True, boot_ms=None)
    one.note(POSITION, now)
    assert not one.begins(now + 1000.0, connected=True, boot_ms=None)
    assert not one.begins(now + 1001.0, connected=False, boot_ms=None)
    assert one.begins(now + 1002.0, connected=True, boot_ms=None)
    one.note(STATUS, now)
    one.note(POSITION, now)
    assert not one.begins(now + 29.0, connected=True, boot_ms=None), "one in ten seconds is patience, too"
