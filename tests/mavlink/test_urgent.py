"""Urgent frames overtake bulk: on a pseudo terminal that is read at a radio's speed, and to a slow TCP peer."""

from __future__ import annotations

import asyncio
import os
import pty
import random
import socket
import statistics
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import pairwise
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymavlink.dialects.v20 import all as mavlink

from petalbus.handlers.mavlink.wire.dialect import Packer, load_dialect
from petalbus.handlers.mavlink.wire.heartbeat import beat
from petalbus.handlers.mavlink.wire.link import Link
from petalbus.handlers.mavlink.wire.outbox import URGENT_IDS, Outbox, is_urgent, numbered
from petalbus.handlers.mavlink.wire.pace import BaudPace
from petalbus.handlers.mavlink.wire.signing import Signer

BAUD: Final = 57600
RATE: Final = BAUD / 10
"""Bytes a second."""
COMMAND_BYTES: Final = 45
KEY: Final = bytes(range(32))
PATIENCE_S: Final = 20.0


class Radio:
    """The far end of a serial line: a thread takes its bytes at the line's speed, and notes when each came."""

    def __init__(self, end: int) -> None:
        self._end = end
        self.pieces: list[tuple[float, bytes]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="test.radio")
        self._thread.start()

    def _run(self) -> None:
        free_at = time.monotonic()  # when what came so far has passed the line
        while not self._stop.is_set():
            now = time.monotonic()
            room = int((now - free_at) * RATE)
            if room > 0:
                try:
                    data = os.read(self._end, min(room, 64))
                except BlockingIOError:
                    free_at = now - 8 / RATE
                    data = b""
                except OSError:
                    return  # nobody has the other end open
                if data:
                    free_at += len(data) / RATE
                    self.pieces.append((now, data))
                    continue
            time.sleep(0.001)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def messages(self, mav: Any) -> list[tuple[float, Any]]:
        """Every message and when its last byte came."""
        found = []
        for at, data in list(self.pieces):
            found += [(at, message) for message in mav.parse_buffer(data) or ()]
        return found


@contextmanager
def radio() -> Iterator[tuple[str, Radio]]:
    end, port = pty.openpty()
    path = os.ttyname(port)
    os.close(port)
    os.set_blocking(end, False)
    # the port is opened by the link first: without that a read of this end fails
    keep = os.open(path, os.O_RDWR | os.O_NOCTTY)
    far = Radio(end)
    try:
        yield path, far
    finally:
        far.stop()
        os.close(keep)
        os.close(end)


def receiver() -> Any:
    mav = mavlink.MAVLink(None, srcSystem=1, srcComponent=1)
    mav.robust_parsing = True
    return mav


@asynccontextmanager
async def open_link(endpoint: str, **settings: Any) -> AsyncIterator[Link]:
    async with Link(endpoint, on_frames=lambda _frames, _mono: None, **settings) as link:
        async with asyncio.timeout(PATIENCE_S):
            while not link.transport.targets(None, ()):
                await asyncio.sleep(0.01)
        yield link


def bulk(number: int) -> bytes:
    """The payload of a FILE_TRANSFER_PROTOCOL as long as they get; the number makes it known again."""
    return bytes((0, 1, 1)) + number.to_bytes(4, "little") + bytes([7]) * 247


async def saturate(link: Link) -> None:
    """As much bulk as is taken, always."""
    number = 0
    while True:
        while link.send_payload(mavlink.MAVLINK_MSG_ID_FILE_TRANSFER_PROTOCOL, bulk(number)):
            number += 1
        await asyncio.sleep(0.01)


async def stopped(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def command(link: Link, number: int) -> Any:
    return link.dialect.message("COMMAND_LONG", target_system=1, command=400, param1=1.0, param7=float(number + 1))


def of_type(messages: list[tuple[float, Any]], name: str) -> list[tuple[float, Any]]:
    return [(at, message) for at, message in messages if message.get_type() == name]


async def busy_line(path: str, commands: int, **settings: Any) -> list[float]:
    """Keep the line full for a while, with a heartbeat five times a second; when each command was given."""
    given_at: list[float] = []
    rng = random.Random(3)  # when, not secrets
    async with open_link(f"serial:{path}:{BAUD}", **settings) as link:
        tasks = [asyncio.create_task(saturate(link)), asyncio.create_task(beat(link))]
        await asyncio.sleep(0.5)
        for number in range(commands):
            await asyncio.sleep(rng.uniform(0.05, 0.12))
            given_at.append(time.monotonic())
            assert link.send(command(link, number)) == 1
        await asyncio.sleep(0.3)
        wire = link.statistics()["wires"][0]
        assert wire["dropped"] > 0, "there was always more bulk than room"
        assert wire["overtaken"] >= commands
        await stopped(*tasks)
    return given_at


async def test_on_a_full_line_an_urgent_frame_leaves_next() -> None:
    """57600 baud: within 50 ms and the time of its own bytes; heartbeats keep their rate, no frame is cut."""
    with radio() as (path, far):
        given_at = await busy_line(path, 25)
        await asyncio.sleep(0.2)
        messages = far.messages(receiver())
    came = {int(message.param7) - 1: at for at, message in of_type(messages, "COMMAND_LONG")}
    assert list(came) == list(range(25)), "all, in their order"
    late = sorted(came[number] - at - COMMAND_BYTES / RATE for number, at in enumerate(given_at))
    assert statistics.median(late) <= 0.050
    assert late[-3] <= 0.080, "the machine that runs this may stand still once"
    beats = [at for at, _ in of_type(messages, "HEARTBEAT")]
    assert (len(beats) - 1) / (beats[-1] - beats[0]) == pytest.approx(5.0, rel=0.05)
    assert max(b - a for a, b in pairwise(beats)) < 0.35
    assert not of_type(messages, "BAD_DATA")


async def test_overtaking_costs_the_bulk_nothing_and_leaves_no_gap() -> None:
    """Bulk comes in its order and uses the line up; the sequence numbers are those of the order of leaving."""
    with radio() as (path, far):
        await busy_line(path, 15)
        await asyncio.sleep(0.2)
        messages = far.messages(receiver())
    files = of_type(messages, "FILE_TRANSFER_PROTOCOL")
    numbers = [int.from_bytes(bytes(message.payload[:4]), "little") for _, message in files]
    assert numbers == sorted(set(numbers))
    seconds = files[-1][0] - files[0][0]
    used = sum(len(message.get_msgbuf()) for at, message in messages if files[0][0] < at <= files[-1][0])
    assert used / seconds > 0.85 * RATE
    sequence = [message.get_seq() for _, message in messages]
    assert sequence == [(sequence[0] + n) & 0xFF for n in range(len(sequence))]


async def test_an_overtaken_frame_is_no_replay() -> None:
    """Signatures are made in the order of leaving, so that a vehicle believes every frame."""
    theirs = receiver()
    theirs.signing.secret_key = KEY
    theirs.signing.allow_unsigned_callback = lambda *_: False
    with radio() as (path, far):
        given_at = await busy_line(path, 15, signing=Signer(KEY))
        await asyncio.sleep(0.2)
        messages = far.messages(theirs)
    assert len(of_type(messages, "COMMAND_LONG")) == len(given_at)
    assert theirs.signing.badsig_count == 0
    assert not of_type(messages, "BAD_DATA")
    stamps = [int.from_bytes(bytes(message.get_msgbuf())[-12:-6], "little") for _, message in messages]
    assert stamps == sorted(set(stamps))


async def test_the_same_on_tcp_with_a_peer_that_reads_slowly() -> None:
    """What the peer's system has taken cannot be overtaken; all that still is on our side is."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        server.bind(("127.0.0.1", 0))
        server.listen()
        async with open_link(f"tcp:127.0.0.1:{server.getsockname()[1]}") as link:
            client, _ = server.accept()
            with client:
                client.setblocking(False)
                count = 0
                while link.send_payload(mavlink.MAVLINK_MSG_ID_FILE_TRANSFER_PROTOCOL, bulk(count)):
                    count += 1
                    await asyncio.sleep(0)
                assert link.send(command(link, 0)) == 1
                mav, messages = receiver(), []
                async with asyncio.timeout(PATIENCE_S):
                    while len(messages) < count + 1:
                        with suppress(BlockingIOError):
                            messages += mav.parse_buffer(client.recv(1000)) or ()
                        await asyncio.sleep(0.001)
    kinds = [message.get_type() for message in messages]
    place = kinds.index("COMMAND_LONG")
    assert place * 263 < 16 * 1024, "the peer's 4 KiB, and the little that our system may hold"
    assert count - place > 60 * 1024 / 263, "nearly all that waited on our side, 64 KiB"
    assert "BAD_DATA" not in kinds
    assert [message.get_seq() for message in messages] == [n & 0xFF for n in range(count + 1)]


async def test_full_bulk_leaves_room_for_urgent_and_the_other_way_round() -> None:
    """A frame that has no room is counted, and no other kind suffers."""
    with radio() as (path, _):
        async with open_link(f"serial:{path}:{BAUD}") as link:
            while link.send_payload(mavlink.MAVLINK_MSG_ID_FILE_TRANSFER_PROTOCOL, bulk(0)):
                pass
            assert link.unsent == 1
            number = 0
            while link.send(command(link, number)):
                number += 1
            assert number * COMMAND_BYTES > 1000
            assert link.statistics()["wires"][0]["waiting_bytes"] <= 1.25 * RATE
            assert link.statistics()["wires"][0]["dropped"] == link.unsent == 2


def test_what_a_line_holds_is_known_by_its_speed() -> None:
    """A pseudo terminal, like many an adapter, does not tell what it holds."""
    end, port = pty.openpty()
    try:
        pace = BaudPace(port, RATE)
        assert pace.pause(263) == 0.0, "one frame always goes"
        pace.gave(263)
        assert 0.03 < pace.pause(263) < 0.042, "the next one when it is nearly gone"
        assert 0.02 < pace.pause(21) < 0.03, "20 ms in all"
        time.sleep(0.045)
        assert pace.pause(263) == 0.0
        fast = BaudPace(port, 92_160.0)
        for _ in range(7):
            assert fast.pause(263) == 0.0, "20 ms of a fast line are several frames"
            fast.gave(263)
        assert fast.pause(263) > 0.0
    finally:
        os.close(end)
        os.close(port)


# Pure


PACKERS = [Packer(load_dialect(), system=2, component=140, version=version) for version in (1, 2)]


def frame(msgid: int, packer: Packer) -> bytes:
    return packer.pack_payload(msgid, bytes(range(1, 15)))


@pytest.mark.parametrize("packer", PACKERS, ids=["v1", "v2"])
def test_what_is_urgent(packer: Packer) -> None:
    urgent = "COMMAND_LONG COMMAND_INT COMMAND_ACK HEARTBEAT MANUAL_CONTROL SET_MODE SET_POSITION_TARGET_LOCAL_NED"
    slow = "FILE_TRANSFER_PROTOCOL LOG_REQUEST_DATA PARAM_SET PARAM_REQUEST_READ MISSION_ITEM_INT SERIAL_CONTROL"
    ids = packer.dialect.ids
    assert all(is_urgent(frame(ids[name], packer)) for name in urgent.split())
    assert not any(is_urgent(frame(ids[name], packer)) for name in slow.split())
    assert {packer.dialect.names.get(msgid) for msgid in URGENT_IDS} >= {"SET_ATTITUDE_TARGET", "RC_CHANNELS_OVERRIDE"}


@pytest.mark.parametrize("packer", PACKERS, ids=["v1", "v2"])
def test_a_frame_gets_another_number(packer: Packer) -> None:
    mav = receiver()
    for seq in (0, 1, 255, 77):
        data = numbered(frame(76, packer), seq)
        assert mav.parse_char(data).get_seq() == seq
    damaged = frame(76, packer)[:-2] + b"\0\0"
    assert numbered(damaged, damaged[4 if packer.version == 2 else 2]) == damaged


@given(st.lists(st.tuples(st.sampled_from([0, 76, 110, 23, 39]), st.booleans()), max_size=200))
def test_each_kind_keeps_its_order_and_its_bound(steps: list[tuple[int, bool]]) -> None:
    box, packer = Outbox(700), PACKERS[1]
    waiting: dict[bool, list[bytes]] = {True: [], False: []}
    for msgid, take in steps:
        data = packer.pack_payload(msgid, bytes([1]) * 30)
        urgent = is_urgent(data)
        room = (1024 if urgent else 700) - sum(map(len, waiting[urgent]))
        assert box.put(data) is (len(data) <= room)
        if len(data) <= room:
            waiting[urgent].append(data)
        if take and len(box):
            kind = bool(waiting[True])
            assert box.next_size() == len(waiting[kind][0])
            assert box.take() == waiting[kind].pop(0)
        assert box.waiting == sum(len(data) for each in waiting.values() for data in each)
        assert len(box) == sum(map(len, waiting.values()))


@pytest.mark.parametrize("packer", PACKERS, ids=["v1", "v2"])
def test_streams_take_no_room_from_commands_and_the_newest_wins(packer: Packer) -> None:
    """A petal that sends setpoints faster than the line: a stop has its place, and each vehicle its newest setpoint."""
    make = packer.dialect.message
    box = Outbox(2048)

    def setpoint(system: int, x: float) -> bytes:
        zero = dict.fromkeys(("y", "z", "vx", "vy", "vz", "afx", "afy", "afz", "yaw", "yaw_rate"), 0.0)
        fields = {"time_boot_ms": 1, "coordinate_frame": 1, "type_mask": 0, "target_component": 1, **zero}
        return packer.pack(make("SET_POSITION_TARGET_LOCAL_NED", target_system=system, x=x, **fields))

    for number in range(100):
        for system in (1, 2):
            assert box.put(setpoint(system, float(number)))
    params = {f"param{index}": 0.0 for index in range(1, 8)}
    stop = packer.pack(make("COMMAND_LONG", target_system=1, target_component=1, command=400, confirmation=0, **params))
    assert box.put(stop)
    assert (len(box), box.superseded) == (3, 198)
    head = 10 if packer.version == 2 else 6
    assert box.take() == stop, "the command is the first"
    assert {box.take()[head + 50], box.take()[head + 50]} == {1, 2}
    assert box.waiting == 0
