"""Packets: what arrives in any pieces is the same, and no bytes whatever do more than end the connection."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from petalbus.handlers.mqtt.direct.framing import MAX_BODY, Framer, MalformedPacket
from petalbus.handlers.mqtt.direct.packets import Ack, Codec, Connack, Goodbye, Pong, Publish
from petalbus.handlers.mqtt.transport import Outgoing

VERSIONS: list[Literal["5", "3.1.1"]] = ["5", "3.1.1"]


@given(
    bodies=st.lists(st.binary(max_size=300), max_size=6),
    cuts=st.lists(st.integers(min_value=0, max_value=2000), max_size=12),
    limit=st.integers(min_value=1, max_value=250),
)
def test_pieces_make_no_difference(bodies: list[bytes], cuts: list[int], limit: int) -> None:
    """Cut anywhere; a message above the limit is handed on cut, and what follows is whole."""
    stream = b"".join(bytes([0x30]) + _length(len(body)) + body for body in bodies)
    framer = Framer(limit)
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    found = [packet for begin, end in pairwise(edges) for packet in framer.feed(stream[begin:end])]
    assert found == [(0x30, body[:limit]) for body in bodies]


@given(first=st.integers(min_value=0, max_value=255), body=st.binary(max_size=60), version=st.sampled_from(VERSIONS))
def test_any_bytes_are_a_packet_or_malformed(first: int, body: bytes, version: Literal["5", "3.1.1"]) -> None:
    """S-194: nothing else is raised, so the link can say what was wrong."""
    try:
        packet = Codec(version).read(first, body)
    except MalformedPacket:
        return
    assert isinstance(packet, Connack | Publish | Ack | Pong | Goodbye)


def test_only_a_message_may_be_large() -> None:
    """A packet of another kind that says it is large would be waited for without an end."""
    with pytest.raises(MalformedPacket, match="type 4"):
        Framer().feed(bytes([0x40]) + _length(MAX_BODY + 1))
    with pytest.raises(MalformedPacket, match="four bytes"):
        Framer().feed(b"\x30\xff\xff\xff\xff\x01")
    with pytest.raises(MalformedPacket, match="0x48"):
        Framer().feed(b"HTTP")


@pytest.mark.parametrize("version", VERSIONS)
def test_names_that_are_not_ascii(version: Literal["5", "3.1.1"]) -> None:
    """Lengths count bytes: client ids, passwords, topics and filters with umlauts are whole packets."""
    codec = Codec(version)
    made = [
        codec.connect("Drohne-ä", username="ü", password="ß", keepalive=20, session_expiry=1, receive_maximum=2),
        codec.publish(Outgoing(id="ä", topic="ä/ö", payload=b"x"))[1],
        codec.subscribe([("ä/#", 1)])[1],
        codec.unsubscribe(["ä/#"])[1],
    ]
    for packet in made:
        assert len(packet) == packet[1] + 2, packet


def test_ids_are_used_again() -> None:
    """100,000 messages on one connection: an id is free when it is acknowledged."""
    codec = Codec("5")
    message = Outgoing(id="i", topic="t", payload=b"")
    for _ in range(100_000):
        mid, _ = codec.publish(message)
        assert mid is not None
        assert 1 <= mid <= 65535
        codec.free(mid)


def _length(number: int) -> bytes:
    out = bytearray()
    while True:
        number, byte = divmod(number, 128)
        out.append(byte | (0x80 if number else 0))
        if not number:
            return bytes(out)
