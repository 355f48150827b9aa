"""What the daemon and a petal's process say to each other: JSON lines over a pair of sockets.

daemon: configuration, "start", "stop", "counters", "organization"
petal:  "prepared", "running", "stopped", "counters", "broken", "error"; the end of the stream is the end of the other
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

MAX_LINE: Final = 1 << 20
FD_VARIABLE: Final = "PETALBUS_PETAL_FD"
"""Tells a petal's process which of its open files leads to the daemon."""


async def read(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """The next message; None at the end. Raises ValueError when it is none."""
    try:
        line = await reader.readline()
    except (ConnectionError, asyncio.IncompleteReadError):
        return None
    if not line.endswith(b"\n"):
        return None
    told: dict[str, Any] = json.loads(line)
    return told


def write(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    """Send a message; it is small, and nobody waits for it to leave."""
    if not writer.is_closing():
        writer.write(json.dumps(message, default=str).encode() + b"\n")
