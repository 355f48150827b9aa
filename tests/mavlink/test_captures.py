"""Sessions recorded with real ArduPilot and PX4, where the recordings lie beside the checkout."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pymavlink.dialects.v20 import all as mavlink

from petalbus.handlers.mavlink.wire.dialect import load_dialect
from petalbus.handlers.mavlink.wire.framing import Framer

CAPTURES = Path(__file__).resolve().parents[3] / "shared" / "data" / "captures"
NAMES = ("px4", "ardupilot")

pytestmark = pytest.mark.skipif(not CAPTURES.is_dir(), reason="the recorded sessions are not here")


def datagrams(name: str, direction: str) -> Iterator[bytes]:
    with gzip.open(CAPTURES / f"{name}.jsonl.gz", "rt", encoding="ascii") as lines:
        for line in lines:
            _, way, text = json.loads(line)
            if way == direction:
                yield bytes.fromhex(text)


@pytest.mark.parametrize("direction", ["down", "up"])
@pytest.mark.parametrize("name", NAMES)
def test_every_recorded_frame_comes_out_byte_for_byte(name: str, direction: str) -> None:
    sent = list(datagrams(name, direction))
    frames = [data for data in sent if data[0] in (0xFD, 0xFE)]
    framer = Framer(load_dialect().crc_extras)
    out = [frame.raw for data in sent for frame in framer.feed_datagram(data)]
    assert out == frames
    assert framer.counters.crc_errors == framer.pending == 0
    assert framer.counters.lost == 0 or direction == "up", "the recorder left out some of its own"
    one_stream = Framer(load_dialect().crc_extras)
    assert [frame.raw for frame in one_stream.feed(b"".join(sent))] == frames


@pytest.mark.parametrize("name", NAMES)
def test_they_decode_as_pymavlink_decodes_them(name: str) -> None:
    dialect = load_dialect()
    framer = Framer(dialect.crc_extras)
    theirs = mavlink.MAVLink(None)
    seen: dict[int, int] = {}
    for data in datagrams(name, "down"):
        for frame in framer.feed_datagram(data):
            count = seen[frame.msgid] = seen.get(frame.msgid, 0) + 1
            if count > 20 or frame.msgid not in dialect.names:
                continue
            ours = dialect.decode(frame, json_safe=False)
            del ours["header"]
            assert str(ours) == str(theirs.decode(bytearray(frame.raw)).to_dict())
    assert len(seen) > 15
