"""MAVLink 2 signing: frames that leave are signed, frames that come are checked, with one secret key for both.

It proves who sent a frame and that it is no repetition of an old one; it hides nothing. Every wire of a link is a
stream of its own, whose timestamps (units of 10 us since 2015) only grow, also across restarts (``Signer.kept``).
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from enum import Enum
from hashlib import sha256
from pathlib import Path
from typing import Final

from petalbus.handlers.mavlink.errors import MavlinkError
from petalbus.handlers.mavlink.wire.crc import crc, crc_with_extra, implied_extra
from petalbus.handlers.mavlink.wire.framing import FLAG_SIGNED, MARKER_V2, Frame

log = logging.getLogger(__name__)

RADIO_STATUS_ID: Final = 109
"""Radios make this message themselves and have no key."""

_UNITS_PER_S: Final = 100_000
_EPOCH_S: Final = 1_420_070_400  # the first of January 2015
_LARGEST_TIMESTAMP: Final = (1 << 48) - 1
_MINUTE: Final = 60 * _UNITS_PER_S
_HEADER: Final = 10
_SIGNATURE: Final = 6
_LINK_AND_TIME: Final = 7
_MAX_STREAMS: Final = 1024
_LOOK_EVERY_S: Final = 3.0
_SAVE_AFTER: Final = 30 * _UNITS_PER_S
_MAX_FILE_BYTES: Final = 32


class SigningError(MavlinkError, ValueError):
    """The key or the link id makes no sense."""

    code = "SIGNING_INVALID"


class Verdict(Enum):
    """What a signature says about a frame."""

    GOOD = "good"
    """It comes from somebody with the key, and it is new."""
    EXEMPT = "exempt"
    """It is not signed and need not be; anybody may have sent it."""
    UNSIGNED = "unsigned"
    OLD = "old"
    """It comes from somebody with the key, but its timestamp is old: a repetition, or a clock that is behind."""
    FORGED = "forged"
    """The signature is wrong: another key, or another content."""


@dataclass(slots=True)
class SigningCounters:
    """What came, by verdict, and what was signed."""

    signed: int = 0
    good: int = 0
    exempt: int = 0
    """Unsigned frames that were let through."""
    unsigned: int = 0
    """Unsigned frames that were not."""
    old: int = 0
    bad_signature: int = 0

    def as_dict(self) -> dict[str, int]:
        """The counters by name."""
        return asdict(self)


def signing_key(text: str) -> bytes:
    """The key of 32 bytes: 64 hex digits as they are, or the SHA-256 of a passphrase, as ground stations make it.

    Raises SigningError when there is nothing.
    """
    if not text:
        raise SigningError("the MAVLink signing key is empty; give a passphrase or 64 hex digits")
    if len(text) == 64:
        try:
            return bytes.fromhex(text)
        except ValueError:
            pass  # a passphrase of 64 characters
    return sha256(text.encode()).digest()


class Signer:
    """Signs and checks with one key, for one link."""

    def __init__(
        self,
        key: bytes,
        *,
        link_id: int = 0,
        accept_unsigned: bool = False,
        memory: Path | None = None,
        wall_clock: float | None = None,
    ) -> None:
        """``link_id`` (0 to 255) is that of the first wire. ``memory`` is the file that keeps the last timestamp.

        ``wall_clock`` is the time now in seconds since 1970 (None: the system's). From here on time goes by the
        monotonic clock. Raises SigningError.
        """
        if len(key) != 32:
            raise SigningError(f"the MAVLink signing key has {len(key)} bytes; it is 32 bytes, see signing_key()")
        if not 0 <= link_id <= 255:
            raise SigningError(f"MAVLink signing link id {link_id}: it is a number from 0 to 255")
        self.counters = SigningCounters()
        self.accept_unsigned = accept_unsigned
        self._key = bytes(key)
        self._link_id = link_id
        self._memory = memory
        wall = time.time() if wall_clock is None else wall_clock
        self._began = max(0, int((wall - _EPOCH_S) * _UNITS_PER_S))
        self._began_s = time.monotonic()
        self._last = 0  # the largest timestamp that was used by us, or by somebody with the key
        self._streams: dict[tuple[int, int, int], int] = {}
        self._used = asyncio.Event()

    @property
    def timestamp(self) -> int:
        """The time now, in units of 10 us since 2015; never less than any that was used."""
        return max(self._last, self._began + int((time.monotonic() - self._began_s) * _UNITS_PER_S))

    def sign(self, data: bytes, *, channel: int = 0) -> bytes:
        """The intact, unsigned frame ``data`` with a signature; ``channel`` is the number of its wire.

        Raises ValueError when it is no MAVLink 2 frame of that kind.
        """
        end = data[1] + _HEADER if len(data) > _HEADER else 0
        if not end or data[0] != MARKER_V2 or data[2] or len(data) != end + 2:
            raise ValueError("only a whole, unsigned MAVLink 2 frame can be signed")
        # the checksum covers the flag that says "signed", so it changes
        extra = implied_extra(crc(data[1:end]), data[end] | data[end + 1] << 8)
        if extra is None:
            raise ValueError("the frame is damaged: its checksum is wrong")
        body = bytes((data[1], FLAG_SIGNED)) + data[3:end]
        checksum = crc_with_extra(crc(body), extra).to_bytes(2, "little")
        self._use(max(self.timestamp, self._last + 1))
        link = bytes(((self._link_id + channel) & 0xFF,))
        signed = data[:1] + body + checksum + link + self._last.to_bytes(6, "little")
        self.counters.signed += 1
        return signed + self._digest(signed)

    def verify(self, frame: Frame) -> Verdict:
        """Check a frame whose checksum holds, count it, and remember its timestamp when it is good."""
        counters = self.counters
        if not frame.signed:
            if self.accept_unsigned:
                counters.exempt += 1
                return Verdict.GOOD
            if frame.msgid == RADIO_STATUS_ID:
                counters.exempt += 1
                return Verdict.EXEMPT
            counters.unsigned += 1
            return Verdict.UNSIGNED
        raw = frame.raw
        if not hmac.compare_digest(raw[-_SIGNATURE:], self._digest(raw[:-_SIGNATURE])):
            counters.bad_signature += 1
            return Verdict.FORGED
        link = raw[-_SIGNATURE - _LINK_AND_TIME]
        timestamp = int.from_bytes(raw[-_SIGNATURE - _LINK_AND_TIME + 1 : -_SIGNATURE], "little")
        if not self._is_new((frame.sysid, frame.compid, link), timestamp):
            counters.old += 1
            return Verdict.OLD
        if timestamp > self._last:
            self._use(timestamp)
        counters.good += 1
        return Verdict.GOOD

    def _is_new(self, stream: tuple[int, int, int], timestamp: int) -> bool:
        last = self._streams.get(stream)
        if last is None:
            # a full table is no reason to forget a stream: its old frames would be new again
            if timestamp + _MINUTE < self.timestamp or len(self._streams) >= _MAX_STREAMS:
                return False
        elif timestamp <= last:
            return False
        self._streams[stream] = timestamp
        return True

    def _use(self, timestamp: int) -> None:
        self._last = min(timestamp, _LARGEST_TIMESTAMP)
        self._used.set()

    def _digest(self, signed: bytes) -> bytes:
        return sha256(self._key + signed).digest()[:_SIGNATURE]

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Keep the timestamp in the memory file while the link is open.

        It starts two minutes after the one in the file, and is written at its first use, when it has grown by half a
        minute (looked at every 3 s), and at the end; so it never goes back, however the process ends.
        """
        if self._memory is None:
            yield
            return
        stored = await asyncio.to_thread(_load, self._memory)
        if stored:
            # what was heard after the last saving, half a minute ago at most, must lie outside of the minute's window
            self._began = max(self._began, stored + 2 * _MINUTE)
            self._began_s = time.monotonic()
        saving = asyncio.create_task(self._save_often(self._memory), name="mavlink.signing")
        try:
            yield
        finally:
            saving.cancel()
            await asyncio.gather(saving, return_exceptions=True)
            if self._last:
                await asyncio.to_thread(_save, self._memory, self._last)

    async def _save_often(self, memory: Path) -> None:
        await self._used.wait()
        saved = -_SAVE_AFTER
        while True:
            if self._last - saved >= _SAVE_AFTER:
                saved = self._last
                await asyncio.to_thread(_save, memory, saved)
            await asyncio.sleep(_LOOK_EVERY_S)


def _load(path: Path) -> int:
    """The timestamp in the file; 0 when there is none."""
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FILE_BYTES).strip()
    except FileNotFoundError:
        return 0
    except OSError as error:
        log.warning("%s: the last MAVLink signing timestamp cannot be read: %s; going by the clock", path, error)
        return 0
    if not text.isdigit() or int(text) > _LARGEST_TIMESTAMP:
        log.warning("%s: this is no MAVLink signing timestamp; going by the clock", path)
        return 0
    return int(text)


def _save(path: Path, timestamp: int) -> None:
    """Replace the file as a whole: a power cut leaves the old one or the new one."""
    beside = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(b"%d\n" % timestamp)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        log.warning("%s: the MAVLink signing timestamp cannot be kept: %s", path, error)
