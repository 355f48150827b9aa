"""What the daemon answers about its petals on the bus: records of type ``petals``.

Data: ``{"action": "list"}``, or ``{"action": "enable"|"disable"|"restart"|"reload", "name": ...}``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from petalbus.daemon.bus.errors import HandlerError
from petalbus.daemon.petals.errors import RuntimeProblem

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.daemon.petals.manager import PetalManager
    from petalbus.schemas.record import Record

TYPE: Final = "petals"


def answer_petals(bus: Bus, manager: Callable[[], PetalManager | None]) -> None:
    """Register the handler. ``manager``: None while petals are not run (yet)."""

    @bus.on(TYPE, concurrency=None)
    async def petals(record: Record) -> dict[str, Any]:
        asked = record.data if isinstance(record.data, dict) else {}
        action, name = asked.get("action", "list"), asked.get("name")
        running = manager()
        if running is None:
            raise HandlerError("petals are not run yet, or not at all here", error_code="NO_PETALS", retry=True)
        if action == "list":
            return {"status": "ok", "petals": running.describe(), **running.statistics()}
        if not isinstance(name, str) or not name:
            raise HandlerError("which petal? give its name", error_code="NO_NAME")
        try:
            return {"status": "ok", "petal": await running.act(name, str(action))}
        except RuntimeProblem as error:
            raise HandlerError(str(error), error_code=error.code.upper()) from error
        except ValueError as error:
            raise HandlerError(str(error), error_code="UNKNOWN_ACTION") from error
