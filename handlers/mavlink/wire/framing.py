"""MAVLink 1 and 2 framing: bytes in, checked frames out. Pure: no I/O, no clock, no dialect but its checksums.

Three things differ from pymavlink's parser, each for a measured reason:

* After a bad checksum the scan goes on at the very next byte. Skipping the length that the damaged frame claimed also
  skips intact frames behind it (4 % of them at 5 % damage).
* Frames of unknown messages pass through, and are still checked: see ``crc.implied_extra``.
* A repeated frame is counted as a duplicate, not as 255 lost ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

from petalbus.handlers.mavlink.wire.crc import CRC_TABLE, crc, crc_with_extra, implied_extra

MARKER_V1: Final = 0xFE
MARKER_V2: Final = 0xFD
FLAG_SIGNED: Final = 0x01
MAX_FRAME_BYTES: Final = 280
"""The longest frame there is: 10 header, 255 payload, 2 checksum, 13 signature."""

_HEADER_V1: Final = 6
_HEADER_V2: Final = 10
_CHECKSUM: Final = 2
_SIGNATURE: Final = 13
_SHORTEST_V2: Final = _HEADER_V2 + _CHECKSUM
_MARKER: Final = re.compile(rb"[\xfd\xfe]")
_INCOMPLETE: Final = 0
_IMPOSSIBLE: Final = -1
_MAX_SENDERS: Final = 1024
_MAX_UNKNOWN: Final = 1024


class Frame:
    """One frame, exactly as received; what its header says is read from there when somebody looks."""

    __slots__ = ("msgid", "raw")

    raw: bytes
    msgid: int

    def __init__(self, raw: bytes, msgid: int) -> None:
        """Take ``raw``, one whole frame whose checksum somebody has checked, and the message id in its header."""
        self.raw = raw
        self.msgid = msgid

    @classmethod
    def from_raw(cls, raw: bytes) -> Frame:
        """Read the message id of one whole frame, its checksum taken on trust; raises ValueError when it is none."""
        size = len(raw)
        if not raw or _claimed_length(raw, 0, size) != size:
            raise ValueError(f"{size} bytes are not one MAVLink frame: {raw[:16].hex()}...")
        return cls(raw, _message_id(raw))

    @property
    def version(self) -> int:
        """The MAVLink version, 1 or 2."""
        return 2 if self.raw[0] == MARKER_V2 else 1

    @property
    def seq(self) -> int:
        """The sequence number of the sending component, 0 to 255."""
        return self.raw[4] if self.raw[0] == MARKER_V2 else self.raw[2]

    @property
    def sysid(self) -> int:
        """The sending system."""
        return self.raw[5] if self.raw[0] == MARKER_V2 else self.raw[3]

    @property
    def compid(self) -> int:
        """The sending component."""
        return self.raw[6] if self.raw[0] == MARKER_V2 else self.raw[4]

    @property
    def payload(self) -> bytes:
        """The payload as it travelled: MAVLink 2 cuts zero bytes off its end."""
        raw = self.raw
        start = _HEADER_V2 if raw[0] == MARKER_V2 else _HEADER_V1
        return raw[start : start + raw[1]]

    @property
    def crc_extra(self) -> int:
        """The CRC extra byte of its message, as its checksum tells it."""
        raw = self.raw
        end = raw[1] + (_HEADER_V2 if raw[0] == MARKER_V2 else _HEADER_V1)
        extra = implied_extra(crc(raw[1:end]), raw[end] | raw[end + 1] << 8)
        assert extra is not None, "the frame was checked"
        return extra

    @property
    def signed(self) -> bool:
        """True when a signature follows the checksum. It is passed on, not verified."""
        return self.raw[0] == MARKER_V2 and bool(self.raw[2] & FLAG_SIGNED)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Frame) and self.raw == other.raw

    def __hash__(self) -> int:
        return hash(self.raw)

    def __repr__(self) -> str:
        return f"<Frame v{self.version} msgid={self.msgid} {self.sysid}/{self.compid} seq={self.seq}>"


_UNDECIDED: Final = Frame(b"", -1)


def _message_id(raw: bytes) -> int:
    return raw[7] | raw[8] << 8 | raw[9] << 16 if raw[0] == MARKER_V2 else raw[5]


@dataclass(slots=True)
class FramingCounters:
    """What passed and what did not, since the framer was made."""

    bytes: int = 0
    frames: int = 0
    unknown: int = 0
    """Frames whose message the dialect does not know; they are among ``frames``."""
    signed: int = 0
    crc_errors: int = 0
    """Damaged places: frames that did not check out, overlapping attempts at one place counted once."""
    skipped_bytes: int = 0
    """Bytes that belong to no frame."""
    lost: int = 0
    """Frames missing by their sequence numbers, per system and component; a late one is taken off again."""
    duplicates: int = 0
    late: int = 0

    def as_dict(self) -> dict[str, int]:
        """The counters by name."""
        return asdict(self)


class _Sender:
    """The sequence of one system and component."""

    __slots__ = ("last", "late")

    def __init__(self, seq: int) -> None:
        self.last = seq
        self.late = -1


class Framer:
    """Cuts one byte stream (one peer of a link) into frames. Holds back what may be one, two at most.

    ``crc_extras`` is the dialect: message id -> CRC extra byte.
    """

    def __init__(self, crc_extras: Mapping[int, int]) -> None:
        self.counters = FramingCounters()
        self._extras = crc_extras
        self._tail = b""
        self._damage_end = 0
        self._senders: dict[int, _Sender] = {}
        self._unknown: dict[int, tuple[int, bool]] = {}

    @property
    def pending(self) -> int:
        """Bytes kept back because they may be the start of a frame."""
        return len(self._tail)

    def feed(self, data: bytes) -> list[Frame]:
        """Add bytes of a stream (serial, TCP). How the bytes are cut up does not change which frames come out."""
        self.counters.bytes += len(data)
        return self._scan(self._tail + data if self._tail else data, final=False)

    def feed_datagram(self, data: bytes) -> list[Frame]:
        """Add one UDP datagram.

        A frame may span datagrams (serial bridges cut anywhere), but a datagram that ends exactly with an intact frame
        shows that an incomplete frame before it is damage: what lies behind it is not kept waiting.
        """
        if not self._tail and len(data) > _SHORTEST_V2:
            frame = self._whole(data)
            if frame is not None:
                return [frame]
        frames = self.feed(data)
        if self._tail and self._ends_with_frame(self._tail):
            frames += self.flush()
        return frames

    def flush(self) -> list[Frame]:
        """Give up on the incomplete frame, because nothing more came for a while or ever will."""
        return self._scan(self._tail, final=True)

    def _whole(self, data: bytes) -> Frame | None:
        """A datagram that is one intact, unsigned MAVLink 2 frame of a known message, as almost all are: the short way.

        Counts what the long way would. None: it is something else, and nothing was counted.
        """
        if data[0] != MARKER_V2 or data[2] or len(data) != data[1] + _SHORTEST_V2:
            return None
        msgid = data[7] | data[8] << 8 | data[9] << 16
        extra = self._extras.get(msgid)
        if extra is None:
            return None
        state = crc(data[1:-2])
        if (state >> 8) ^ CRC_TABLE[(state ^ extra) & 0xFF] != data[-2] | data[-1] << 8:
            return None
        counters = self.counters
        counters.bytes += len(data)
        counters.frames += 1
        seq, key = data[4], data[5] << 8 | data[6]
        sender = self._senders.get(key)
        if sender is not None and (sender.last + 1) & 0xFF == seq:
            sender.last = seq
        else:
            self._track(sender, key, seq)
        return Frame(data, msgid)

    def _scan(self, data: bytes, *, final: bool) -> list[Frame]:
        frames: list[Frame] = []
        counters = self.counters
        position, size = 0, len(data)
        while position < size:
            length = _claimed_length(data, position, size)
            if length == _INCOMPLETE and not final:
                break
            if length > 0:
                frame = self._checked(data, position, length, final=final)
                if frame is _UNDECIDED:
                    break
                if frame is not None:
                    frames.append(frame)
                    position += length
                    continue
                self._count_damage(position, length)
            marker = _MARKER.search(data, position + 1)
            skip_to = marker.start() if marker else size
            counters.skipped_bytes += skip_to - position
            position = skip_to
        counters.frames += len(frames)
        self._tail = data[position:]
        self._damage_end = max(0, self._damage_end - position)
        return frames

    def _checked(self, data: bytes, position: int, length: int, *, final: bool) -> Frame | None:
        """The frame when its checksum holds, else None; _UNDECIDED when only what follows can tell."""
        raw = data[position : position + length]
        if raw[0] == MARKER_V2:
            end = raw[1] + _HEADER_V2
            msgid = raw[7] | raw[8] << 8 | raw[9] << 16
            seq, key, signed = raw[4], raw[5] << 8 | raw[6], raw[2]
        else:
            end = raw[1] + _HEADER_V1
            seq, key, msgid, signed = raw[2], raw[3] << 8 | raw[4], raw[5], 0
        state = crc(raw[1:end])
        received = raw[end] | raw[end + 1] << 8
        extra = self._extras.get(msgid)
        if extra is None:
            holds = self._unknown_holds(data[position:], length, key, implied_extra(state, received), final=final)
            if holds is None:
                return _UNDECIDED
            if not holds:
                return None
            self.counters.unknown += 1
        elif (state >> 8) ^ CRC_TABLE[(state ^ extra) & 0xFF] != received:
            return None
        if signed:
            self.counters.signed += 1
        sender = self._senders.get(key)
        if sender is not None and (sender.last + 1) & 0xFF == seq:
            sender.last = seq
        else:
            self._track(sender, key, seq)
        return Frame(raw, msgid)

    def _unknown_holds(self, data: bytes, length: int, key: int, extra: int | None, *, final: bool) -> bool | None:
        """Whether to believe a frame of an unknown message whose checksum implies the CRC extra byte ``extra``.

        Two equal sightings settle a message's byte. Until then a stretch of noise that looks like a frame would pass
        once in 256 times; so its sender must be known (or nobody yet), and no surer frame may begin inside: a frame
        that was cut claims a part of the next one. None: only what follows ``data`` can tell.
        """
        if extra is None:
            return False
        msgid = _message_id(data)
        known, settled = self._unknown.get(msgid, (-1, False))
        if settled or known == extra:
            if known == extra:
                self._unknown[msgid] = (extra, True)
            return known == extra
        surer = self._begins_within(data, length)
        if surer is None and not final:
            return None
        if known < 0 and len(self._unknown) >= _MAX_UNKNOWN:
            del self._unknown[next(iter(self._unknown))]
        self._unknown[msgid] = (extra, False)
        return (not self._senders or key in self._senders) and not surer

    def _begins_within(self, data: bytes, length: int) -> bool | None:
        """Whether an intact frame of a known message begins in the first ``length`` bytes; None when one may."""
        found: bool | None = False
        for marker in _MARKER.finditer(data, 1, length):
            position = marker.start()
            claimed = _claimed_length(data, position, len(data))
            if claimed > 0 and self._intact(data[position : position + claimed]):
                return True
            if claimed == _INCOMPLETE:
                found = None
        return found

    def _track(self, sender: _Sender | None, key: int, seq: int) -> None:
        """Follow the sequence where it did not simply go on by one."""
        if sender is None:
            if len(self._senders) < _MAX_SENDERS:
                self._senders[key] = _Sender(seq)
            return
        step = (seq - sender.last) & 0xFF
        if step == 0:
            self.counters.duplicates += 1
        elif step < 128 or (sender.late >= 0 and seq == (sender.late + 1) & 0xFF):
            # the second case: two "late" frames in a row are a sender that started again
            self.counters.lost += step - 1 if step < 128 else 0
            sender.last = seq
            sender.late = -1
        else:
            self.counters.late += 1
            self.counters.lost = max(0, self.counters.lost - 1)
            sender.late = seq

    def _count_damage(self, position: int, length: int) -> None:
        if position >= self._damage_end:
            self.counters.crc_errors += 1
            self._damage_end = position + length

    def _ends_with_frame(self, data: bytes) -> bool:
        """Whether ``data`` ends with an intact frame of a known message that begins beyond its first byte."""
        size = len(data)
        for marker in _MARKER.finditer(data, 1):
            position = marker.start()
            length = _claimed_length(data, position, size)
            end = position + length
            if length > 0 and end == size and self._intact(data[position:end]):
                return True
        return False

    def _intact(self, raw: bytes) -> bool:
        end = raw[1] + (_HEADER_V2 if raw[0] == MARKER_V2 else _HEADER_V1)
        extra = self._extras.get(_message_id(raw))
        return extra is not None and crc_with_extra(crc(raw[1:end]), extra) == raw[end] | raw[end + 1] << 8


def whole_frames(data: bytes, crc_extras: Mapping[int, int]) -> list[Frame]:
    """Cut bytes that must be whole, intact frames. Raises ValueError when there is anything else among them."""
    framer = Framer(crc_extras)
    frames = framer.feed(data) + framer.flush()
    if sum(len(frame.raw) for frame in frames) != len(data):
        raise ValueError(f"{len(data)} bytes hold {len(frames)} intact MAVLink frames and something else")
    return frames


def _claimed_length(data: bytes, position: int, size: int) -> int:
    """The length the frame at ``position`` claims; _INCOMPLETE when not all is there, _IMPOSSIBLE when it is none."""
    marker = data[position]
    if marker == MARKER_V2:
        if size - position < 3:
            return _INCOMPLETE
        flags = data[position + 2]
        if flags & ~FLAG_SIGNED:
            return _IMPOSSIBLE  # a receiver must discard what carries incompatibility flags that it does not know
        length = data[position + 1] + _HEADER_V2 + _CHECKSUM + (_SIGNATURE if flags else 0)
    elif marker == MARKER_V1:
        if size - position < 2:
            return _INCOMPLETE
        length = data[position + 1] + _HEADER_V1 + _CHECKSUM
    else:
        return _IMPOSSIBLE
    return length if position + length <= size else _INCOMPLETE


def build_frame(
    msgid: int, payload: bytes, *, crc_extra: int, sysid: int, compid: int, seq: int, version: int = 2
) -> bytes:
    """Put a frame around ``payload`` (at most 255 bytes; MAVLink 2 cuts trailing zeros). Raises ValueError."""
    if version == 2:
        cut = payload.rstrip(b"\0") or payload[:1]
        header = bytes((len(cut), 0, 0, seq, sysid, compid, msgid & 0xFF, msgid >> 8 & 0xFF, msgid >> 16))
        marker = MARKER_V2
    else:
        cut = payload
        header = bytes((len(cut), seq, sysid, compid, msgid))
        marker = MARKER_V1
    body = header + cut
    return bytes((marker,)) + body + crc_with_extra(crc(body), crc_extra).to_bytes(2, "little")
