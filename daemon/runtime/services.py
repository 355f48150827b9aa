"""The daemon's own services: what keeps the bus itself in order. Each is listed here, or it does not run."""

from __future__ import annotations

from typing import Final

SERVICES: Final[tuple[str, ...]] = ()
