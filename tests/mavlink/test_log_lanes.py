"""The list of logs on a slow serial line that is full: what is asked behind the request must not overtake it."""

from __future__ import annotations

import asyncio
import os
import pty
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from pymavlink.dialects.v20 import all as mavlink

from mavlink.ground import Ground, stop, until
from petalbus.handlers.mavlink.files.logs import LogInfo
from petalbus.handlers.mavlink.wire.dialect import Packer, load_dialect
from petalbus.handlers.mavlink.wire.link import Link
from petalbus.handlers.mavlink.wire.outbox import Outbox

BAUD: Final = 57600
SCAN_S: Final = 1.0
LOGS: Final = 3


class Card:
    """A PX4 at the far end of a line. It reads at the line's speed, and nothing while it looks through its card."""

    def __init__(self, end: int) -> None:
        self._end = end
        self._mav = mavlink.MAVLink(None, srcSystem=1, srcComponent=1)
        self._mav.robust_parsing = True
        self.heard: list[str] = []

    def _send(self, message: Any) -> None:
        os.write(self._end, message.pack(self._mav))

    async def run(self) -> None:
        beat_at = 0.0
        while True:
            if time.monotonic() >= beat_at:
                beat_at = time.monotonic() + 0.5
                self._send(mavlink.MAVLink_heartbeat_message(2, 12, 0, 0, 3, 3))
            try:
                data = os.read(self._end, 64)
            except BlockingIOError:
                data = b""
            for message in self._mav.parse_buffer(data) or ():
                await self._take(message)
            await asyncio.sleep(max(0.002, len(data) * 10 / BAUD))

    async def _take(self, message: Any) -> None:
        kind = message.get_type()
        self.heard.append(kind)
        if kind == "LOG_REQUEST_LIST":
            await asyncio.sleep(SCAN_S)
            for number in range(LOGS):
                self._send(mavlink.MAVLink_log_entry_message(number, LOGS, LOGS, 1000, 50))
        elif kind == "TIMESYNC":
            self._send(mavlink.MAVLink_timesync_message(time.monotonic_ns(), message.ts1))


@asynccontextmanager
async def line() -> AsyncIterator[tuple[Ground, Card]]:
    """Our side and the vehicle, over a pseudo terminal."""
    end, port = pty.openpty()
    path = os.ttyname(port)
    os.set_blocking(end, False)
    ground = Ground()
    ground.link = Link(f"serial:{path}:{BAUD}", on_frames=ground._on_frames)
    card = Card(end)
    try:
        async with ground.link:
            task = asyncio.create_task(card.run())
            try:
                await until(lambda: ground.vehicle.state is not None)
                yield ground, card
            finally:
                await stop(task)
    finally:
        os.close(port)
        os.close(end)


async def fill(ground: Ground) -> None:
    """As many bytes of a file as the line takes, for ever."""
    while True:
        ground.link.send_payload(mavlink.MAVLINK_MSG_ID_FILE_TRANSFER_PROTOCOL, bytes((0, 1, 1)) + bytes([7]) * 251)
        await asyncio.sleep(0.06)  # a little slower than 263 bytes take, so that there is room, and a queue


async def test_a_full_card_on_a_full_line_is_not_empty() -> None:
    """The vehicle answers what the time is before it looks through its card, if that question comes first."""
    async with line() as (ground, card):
        for _ in range(12):
            ground.link.send_payload(mavlink.MAVLINK_MSG_ID_FILE_TRANSFER_PROTOCOL, bytes((0, 1, 1)) + bytes([7]) * 251)
        filling = asyncio.create_task(fill(ground))
        expected = [LogInfo(number, 50, 1000) for number in range(LOGS)]
        assert await ground.logs.list_logs(timeout=20.0) == expected
        await stop(filling)
        asked = [kind for kind in card.heard if kind in ("LOG_REQUEST_LIST", "TIMESYNC")]
        assert asked[0] == "LOG_REQUEST_LIST"


def test_the_time_is_not_asked_before_what_it_is_asked_for() -> None:
    """Commands and setpoints overtake both."""
    packer, box = Packer(load_dialect(), system=2, component=140), Outbox(4096)
    ids = packer.dialect.ids
    names = ["FILE_TRANSFER_PROTOCOL", "LOG_REQUEST_LIST", "TIMESYNC", "LOG_REQUEST_END", "COMMAND_LONG"]
    for name in names:
        assert box.put(packer.pack_payload(ids[name], bytes(range(1, 15))))
    left = [packer.dialect.names[int.from_bytes(box.take()[7:10], "little")] for _ in names]
    assert left == [names[-1], *names[:-1]]
