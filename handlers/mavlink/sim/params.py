"""The simulated vehicle's parameters, and how each autopilot serves them.

PX4 answers at once and insists on the type. ArduPilot converts to its own type and serves reads from a queue of 20
that drops the rest in silence, five every 100 ms; an integer that is set to its default comes back as a float. Both
answer with PARAM_ERROR who asks for what they do not have.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from petalbus.handlers.mavlink.params.values import (
    ParamEncoding,
    ParamType,
    ParamValue,
    decode_value,
    encode_value,
)

HASH_NAME: Final = "_HASH_CHECK"
VOLATILE: Final = frozenset(("LND_FLIGHT_T_LO",))
"""PX4 changes these by itself, and leaves them out of its hash."""
_LIST_PER_TICK: Final = 8
_READ_QUEUE: Final = 20
_READS_AT_ONCE: Final = 5
_TICKS_PER_READ_ROUND: Final = 5
_NO_INDEX: Final = 65535


class ParamStore:
    """Names in order, each with its type and its value's four bytes as they travel."""

    def __init__(self, entries: Iterable[tuple[str, ParamType, float]], encoding: ParamEncoding) -> None:
        self.encoding = encoding
        self._types: dict[str, ParamType] = {}
        self._raw: dict[str, bytes] = {}
        for name, kind, value in entries:
            self._types[name] = kind
            self._raw[name] = encode_value(value, kind, encoding)
        self._defaults = dict(self._raw)
        self.names = list(self._types)

    def __len__(self) -> int:
        return len(self.names)

    def type_of(self, name: str) -> ParamType | None:
        """The parameter's type; None when there is no such parameter."""
        return self._types.get(name)

    def number(self, name: str, default: float) -> float:
        """A value, or ``default`` when there is no such parameter."""
        kind = self._types.get(name)
        return default if kind is None else decode_value(self._raw[name], kind, self.encoding)

    def entry(self, name: str, *, index: int) -> ParamValue:
        """The parameter as PARAM_VALUE tells it."""
        return ParamValue(name, self._raw[name], self._types[name], index, len(self.names))

    def add(self, name: str, kind: ParamType, value: float, *, place: int) -> None:
        """A parameter that appears: those behind it move."""
        self._types[name] = kind
        self._raw[name] = self._defaults[name] = encode_value(value, kind, self.encoding)
        self.names.insert(place, name)

    def set_raw(self, name: str, raw: bytes) -> None:
        """Store four bytes of the parameter's own type."""
        self._raw[name] = raw

    def is_default(self, name: str) -> bool:
        """Whether the parameter has its first value."""
        return self._raw[name] == self._defaults[name]

    def checksum(self) -> int:
        """PX4's hash: names and values in order, a CRC-32 without its usual inversions; volatile ones do not count."""
        state = 0
        for name in sorted(set(self.names) - VOLATILE):
            state = _crc32_plain(self._raw[name], _crc32_plain(name.encode(), state))
        return state


def _crc32_plain(data: bytes, state: int) -> int:
    return ~zlib.crc32(data, ~state & 0xFFFFFFFF) & 0xFFFFFFFF


Asker = tuple[int, int]
"""System and component."""
SendValue = Callable[[ParamValue], None]
SendError = Callable[[str, int, Asker], None]
IsWrong = Callable[[], bool]


class ParamServer:
    """Answers parameter messages. ``send_error`` gets a name, a MAV_PARAM_ERROR and who asked."""

    DOES_NOT_EXIST: Final = 1
    READ_ONLY: Final = 5
    TYPE_MISMATCH: Final = 7

    def __init__(
        self,
        store: ParamStore,
        *,
        strict: bool,
        send: SendValue,
        send_error: SendError,
        is_wrong: IsWrong = lambda: False,
    ) -> None:
        """``strict``: PX4's way; else ArduPilot's. ``is_wrong``: asked at each setting, whether it goes wrong."""
        self.store = store
        self._strict = strict
        self._send = send
        self._send_error = send_error
        self._is_wrong = is_wrong
        self._listing = -1
        self._listed_total = 0
        self._reads: deque[tuple[str, int, Asker]] = deque()
        self._ticks = 0

    def request_list(self) -> None:
        """PARAM_REQUEST_LIST: all of them, paced."""
        if self._strict and self._listing < 0:
            self._send_hash()
        self._listing, self._listed_total = 0, len(self.store)

    def read(self, name: str, index: int, asker: Asker) -> None:
        """PARAM_REQUEST_READ, by index or, where that is -1, by name."""
        if self._strict:
            self._answer_read(name, index, asker)
        elif len(self._reads) < _READ_QUEUE:
            self._reads.append((name, index, asker))

    def set(self, wanted: ParamValue, asker: Asker) -> None:
        """PARAM_SET: store and echo, or refuse."""
        store = self.store
        kind = store.type_of(wanted.name)
        if self._strict and wanted.name == HASH_NAME:
            self._listing = -1
            self._send_error(wanted.name, self.READ_ONLY, asker)
        elif kind is None:
            self._send_error(wanted.name, self.DOES_NOT_EXIST, asker)
        elif self._strict and wanted.param_type != kind:
            self._send_error(wanted.name, self.TYPE_MISMATCH, asker)
        else:
            raw = wanted.raw if self._strict else self._converted(wanted, kind)
            if raw is not None and not self._is_wrong():
                store.set_raw(wanted.name, raw)
            self._send(self._echo(wanted.name, kind))

    def tick(self) -> None:
        """Called 50 times a second: goes on with a list and with waiting reads."""
        self._ticks += 1
        if self._ticks % _TICKS_PER_READ_ROUND == 0:
            for _ in range(min(_READS_AT_ONCE, len(self._reads))):
                self._answer_read(*self._reads.popleft())
        if self._listing < 0:
            return
        end = min(self._listing + _LIST_PER_TICK, len(self.store))
        for index in range(self._listing, end):
            entry = self.store.entry(self.store.names[index], index=index)
            # ArduPilot goes on telling how many there were when the list began
            self._send(entry if self._strict else entry._replace(total=self._listed_total))
        self._listing = end
        if end == len(self.store):
            self._listing = -1

    def _echo(self, name: str, kind: ParamType) -> ParamValue:
        """What PARAM_SET is answered with."""
        store = self.store
        if self._strict:
            return store.entry(name, index=store.names.index(name))
        echo = store.entry(name, index=_NO_INDEX)
        if kind is ParamType.REAL32 or not store.is_default(name):
            return echo
        return echo._replace(param_type=ParamType.REAL32)

    def _answer_read(self, name: str, index: int, asker: Asker) -> None:
        store = self.store
        if index >= 0:
            if index < len(store):
                self._send(store.entry(store.names[index], index=index))
        elif self._strict and name == HASH_NAME:
            self._send_hash()
        elif store.type_of(name) is not None:
            self._send(store.entry(name, index=store.names.index(name) if self._strict else _NO_INDEX))
        else:
            self._send_error(name, self.DOES_NOT_EXIST, asker)

    def _send_hash(self) -> None:
        raw = self.store.checksum().to_bytes(4, "little")
        self._send(ParamValue(HASH_NAME, raw, ParamType.UINT32, _NO_INDEX, len(self.store)))

    def _converted(self, wanted: ParamValue, kind: ParamType) -> bytes | None:
        try:
            number = decode_value(wanted.raw, ParamType.REAL32, self.store.encoding)
            return encode_value(number if kind is ParamType.REAL32 else int(number), kind, self.store.encoding)
        except (ValueError, OverflowError):
            return None  # out of its range: ArduPilot keeps the old value and echoes that
