"""A vehicle that only talks: so many frames a second over UDP, and the time at which each command reached it.

A process of its own, so that what it costs is not counted. It prints one JSON object at its end.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import time
from typing import Any, Final

from petalbus.handlers.mavlink.wire.dialect import Dialect, Packer, load_dialect
from petalbus.handlers.mavlink.wire.framing import Framer

_MIX: Final = (
    "ATTITUDE",
    "LOCAL_POSITION_NED",
    "ATTITUDE_QUATERNION",
    "HIGHRES_IMU",
    "GLOBAL_POSITION_INT",
    "SERVO_OUTPUT_RAW",
    "VFR_HUD",
    "ATTITUDE_TARGET",
)
_COMMAND_LONG: Final = 76
_TURN_S: Final = 0.005


def main() -> None:
    """Talk, listen, tell."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    dialect = load_dialect()
    packer = Packer(dialect, system=1, component=1)
    framer = Framer(dialect.crc_extras)
    messages = [dialect.message(name, **_filled(dialect, name)) for name in _MIX]
    beat = dialect.message("HEARTBEAT", type=2, autopilot=12, base_mode=1, system_status=3, mavlink_version=3)
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect(("127.0.0.1", options.port))
    sock.setblocking(False)  # noqa: FBT003  # the standard library's signature
    sent = size = 0
    commands: list[tuple[int, int]] = []
    begun = time.monotonic()
    beat_at = begun
    while (now := time.monotonic()) - begun < options.seconds:
        if now >= beat_at:
            sock.send(packer.pack(beat))
            sent, beat_at = sent + 1, beat_at + 1.0
        while sent < (now - begun) * options.rate:
            frame = packer.pack(messages[sent % len(messages)])
            sock.send(frame)
            sent, size = sent + 1, size + len(frame)
        until = time.monotonic() + _TURN_S
        while time.monotonic() < until:
            try:
                data = sock.recv(4096)
            except (BlockingIOError, ConnectionRefusedError):
                time.sleep(0.0002)
                continue
            arrived = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            for got in framer.feed_datagram(data):
                if got.msgid == _COMMAND_LONG:
                    fields = dialect.fields(got)
                    commands.append((int(fields["param7"]), arrived))
                    told = {"command": fields["command"], "result": 0, "target_system": 2, "target_component": 140}
                    sock.send(packer.pack(dialect.message("COMMAND_ACK", **told)))
                    sent += 1
    sys.stdout.write(json.dumps({"sent": sent, "frame_bytes": size / max(1, sent), "commands": commands}) + "\n")


def _filled(dialect: Dialect, name: str) -> dict[str, Any]:
    """Values that are no zeros: MAVLink 2 leaves zeros at the end out, and real messages have few."""
    message: Any = dialect.module.mavlink_map[dialect.ids[name]]
    lengths = dict(zip(message.ordered_fieldnames, message.array_lengths, strict=True))
    values: dict[str, Any] = {}
    for field, kind in zip(message.fieldnames, message.fieldtypes, strict=True):
        one = 7.25 if kind in ("float", "double") else 77
        values[field] = [one] * lengths[field] if lengths[field] else one
    return values


if __name__ == "__main__":
    main()
