"""How many of the intact frames are found between damaged packets, over datagrams and in a stream of bytes."""

from __future__ import annotations

import random
from typing import Final

from petalbus.handlers.mavlink.wire.dialect import load_dialect
from petalbus.handlers.mavlink.wire.framing import Framer, build_frame

DAMAGED: Final = 0.05
"""Share of the packets."""

_MOST_PAYLOAD: Final = 60
_PIECE: Final = 200


def found_percent(*, frames: int, seed: int = 5) -> dict[str, float]:
    """Intact frames found, in percent of those that were sent: ``datagrams`` and ``stream``."""
    packets, intact = _packets(frames, seed)
    datagrams = Framer(load_dialect().crc_extras)
    heard = [frame.raw for packet in packets for frame in datagrams.feed_datagram(packet)]
    heard += [frame.raw for frame in datagrams.flush()]
    stream, data = Framer(load_dialect().crc_extras), b"".join(packets)
    read = [frame.raw for at in range(0, len(data), _PIECE) for frame in stream.feed(data[at : at + _PIECE])]
    read += [frame.raw for frame in stream.flush()]
    return {"datagrams": _percent(heard, intact), "stream": _percent(read, intact)}


def _percent(found: list[bytes], sent: list[bytes]) -> float:
    """Each frame is another one, so that a set tells how many are there."""
    return 100.0 * len(set(found) & set(sent)) / len(sent)


def _packets(number: int, seed: int) -> tuple[list[bytes], list[bytes]]:
    """What travels, and which of it is intact."""
    rng = random.Random(seed)  # noqa: S311  # luck that can be repeated
    extras = load_dialect().crc_extras
    known = sorted(extras)
    packets, intact = [], []
    for place in range(number):
        msgid = rng.choice(known)
        payload = place.to_bytes(4, "little") + rng.randbytes(rng.randrange(1, _MOST_PAYLOAD)) + b"\1"
        raw = build_frame(msgid, payload, crc_extra=extras[msgid], sysid=1, compid=1, seq=place & 0xFF)
        packet = _damaged(raw, rng) if rng.random() < DAMAGED else raw
        if raw in packet:  # what only has garbage beside it is intact
            intact.append(raw)
        packets.append(packet)
    return packets, intact


def _damaged(raw: bytes, rng: random.Random) -> bytes:
    """Cut off, with bits turned over, or with bytes put in: before it, after it, or in its middle."""
    way = rng.randrange(3)
    if way == 0:
        return raw[: rng.randrange(1, len(raw))]
    at = rng.randrange(len(raw) + 1)
    if way == 1:
        return raw[:at] + rng.randbytes(rng.randrange(1, 20)) + raw[at:]
    turned = bytearray(raw)
    for _ in range(rng.randrange(1, 4)):
        turned[rng.randrange(len(turned))] ^= 1 << rng.randrange(8)
    return bytes(turned)
