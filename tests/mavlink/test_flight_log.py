"""The simulated vehicle's own logs of its flights, read by others' readers and by the format's description."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from pymavlink import DFReader

from petalbus.handlers.mavlink.sim.airframe import Airframe
from petalbus.handlers.mavlink.sim.autopilot import ARDUPILOT, PX4, Autopilot
from petalbus.handlers.mavlink.sim.disk import CAPACITY, Disk
from petalbus.handlers.mavlink.sim.flight_log import FlightLog


class Flying:
    """An airframe with a log, and a clock."""

    def __init__(self, autopilot: Autopilot) -> None:
        self.now = 1.0
        self.airframe = Airframe(random.Random(1))
        self.disk = Disk(autopilot, seed=1)
        self.log = FlightLog(autopilot, self.airframe, self.disk, since_boot=lambda: self.now)

    def fly(self, seconds: float = 2.0) -> bytes:
        """Arm, climb, disarm; the log, or what is left of it."""
        self.airframe.arm()
        self.airframe.climb_to(3.0)
        for _ in range(round(seconds * 50)):
            self.now += 0.02
            self.airframe.step(0.02)
            self.log.tick()
        self.airframe.disarm()
        self.log.tick()
        return bytes(self.disk.files.get(self.disk.logs[-1].path, b""))


def messages(log: bytes) -> list[tuple[bytes, bytes]]:
    """The messages of a ULog, kind and body."""
    found, at = [], 16
    while at < len(log):
        size, kind = struct.unpack_from("<Hc", log, at)
        found.append((kind, log[at + 3 : at + 3 + size]))
        at += 3 + size
    assert at == len(log)
    return found


def test_a_flight_of_px4() -> None:
    flown = Flying(PX4)
    log = flown.fly()
    assert log[:8] == b"ULog\x01\x12\x35\x01"
    found = messages(log)
    assert [kind for kind, _ in found[:4]] == [b"B", b"F", b"I", b"A"]
    rows = [struct.unpack("<HQfff", body) for kind, body in found if kind == b"D"]
    assert len(rows) == pytest.approx(20, abs=3)
    assert rows[-1][4] > rows[0][4]
    assert [row[1] for row in rows] == sorted({row[1] for row in rows})


def test_a_flight_of_ardupilot(tmp_path: Path) -> None:
    flown = Flying(ARDUPILOT)
    (tmp_path / "00000004.BIN").write_bytes(flown.fly())
    reader = DFReader.DFReader_binary(str(tmp_path / "00000004.BIN"))
    rows = []
    while (row := reader.recv_match(type="FLWN")) is not None:
        rows.append(row.Height)
    reader.filehandle.close()
    assert len(rows) == pytest.approx(20, abs=3)
    assert rows[-1] > rows[0]


@pytest.mark.parametrize("autopilot", [PX4, ARDUPILOT], ids=["px4", "ardupilot"])
def test_each_flight_has_its_own_and_a_lack_of_room_ends_nothing(autopilot: Autopilot) -> None:
    flown = Flying(autopilot)
    first, second = flown.fly(), flown.fly(3.0)
    assert len(flown.disk.logs) == 5
    assert len({log.path for log in flown.disk.logs}) == 5
    assert len(first) < len(second)
    flown.disk.files["/full"] = bytearray(CAPACITY - flown.disk.used - 30)
    assert flown.fly() == b""
    assert flown.disk.used <= CAPACITY
    del flown.disk.files["/full"]
    assert len(flown.fly()) > 300
