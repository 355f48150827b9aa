"""Cuts the broker's stream of bytes into packets."""

from __future__ import annotations

from typing import Final

PUBLISH: Final = 0x30
MAX_BODY: Final = 1024 * 1024
"""Bytes of a packet that are kept. Far above what any setting takes: the rest of a larger message is not even held."""

_LENGTH_BYTES: Final = 4


class MalformedPacket(Exception):
    """The broker sent something that is not MQTT. The connection cannot be read any further."""


class Framer:
    """``feed(bytes)`` returns the packets that are complete now, each as its first byte and its body.

    Of a message larger than ``limit`` bytes the beginning is handed on and the rest is skipped: it would come again
    and again otherwise. Any other packet of that size is malformed.
    """

    def __init__(self, limit: int = MAX_BODY) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._skip = 0

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Take what arrived. Raises MalformedPacket for a length that no packet has."""
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        self._buffer += data
        packets: list[tuple[int, bytes]] = []
        begin = 0
        while (head := self._head(begin)) is not None:
            start, length = head
            kept = self._kept(self._buffer[begin], length)
            if len(self._buffer) - start < kept:
                break
            packets.append((self._buffer[begin], bytes(self._buffer[start : start + kept])))
            begin = min(start + length, len(self._buffer))
            self._skip = start + length - begin
        del self._buffer[:begin]
        return packets

    def _kept(self, first: int, length: int) -> int:
        if length <= self._limit:
            return length
        if first & 0xF0 != PUBLISH:
            raise MalformedPacket(f"a packet of type {first >> 4} says that it has {length} bytes")
        return self._limit

    def _head(self, begin: int) -> tuple[int, int] | None:
        """Where the body begins and how long it is; None while that has not arrived."""
        if begin < len(self._buffer) and (first := self._buffer[begin]) & 0xF0 != PUBLISH and first & 0x0F:
            raise MalformedPacket(f"no packet begins with {first:#04x}")
        length = 0
        for position in range(_LENGTH_BYTES):
            at = begin + 1 + position
            if at >= len(self._buffer):
                return None
            byte = self._buffer[at]
            length |= (byte & 0x7F) << (7 * position)
            if not byte & 0x80:
                return at + 1, length
        raise MalformedPacket("the length of a packet has more than four bytes")
