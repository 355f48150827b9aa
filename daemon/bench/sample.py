"""The payloads that all peers carry: the same JSON, as a value and as bytes.

``sent`` (CLOCK_MONOTONIC, ns) comes first, so that a peer which does not parse JSON finds it without searching.
"""

from __future__ import annotations

import time
from typing import Any, Final

_START: Final = b'{"sent":'
_COMMAND: Final = b'{"sent":%d,"command":"goto","sequence":%d,"parameters":{"altitude":10.5,"speed":3.5},"note":"%b"}'
_FIXED: Final = len(_COMMAND % (10**15, 10**6, b""))


def note(size: int) -> str:
    """The padding that brings a payload to about ``size`` bytes."""
    return "x" * max(0, size - _FIXED)


def command(sequence: int, sent: int, padding: str) -> dict[str, Any]:
    """A ``command`` payload: a type with a model, so that it is validated in full."""
    parameters = {"altitude": 10.5, "speed": 3.5}
    return {"sent": sent, "command": "goto", "sequence": sequence, "parameters": parameters, "note": padding}


def telemetry(sequence: int, sent: int, padding: str) -> dict[str, Any]:
    """A ``telemetry`` payload, about as long as the command."""
    return {"sent": sent, "sequence": sequence, "altitude": 10.5, "speed": 3.5, "battery_level": 80.5, "note": padding}


def emergency(sequence: int, sent: int) -> dict[str, Any]:
    """An ``emergency_command`` payload."""
    return {"sent": sent, "action": "land_immediately", "sequence": sequence}


def command_bytes(sequence: int, sent: int, padding: bytes) -> bytes:
    """What the wire carries for ``command``."""
    return _COMMAND % (sent, sequence, padding)


def sent_at(payload: bytes) -> int:
    """The time stamp of a payload's bytes."""
    return int(payload[len(_START) : payload.index(b",")])


def now() -> int:
    """The clock of all time stamps: CLOCK_MONOTONIC in ns, one for all processes."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def spin(microseconds: int) -> None:
    """Keep the process busy, as a handler does that computes: nothing else of this process runs meanwhile."""
    end = time.perf_counter_ns() + microseconds * 1000
    while time.perf_counter_ns() < end:
        pass
