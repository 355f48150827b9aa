"""How work on a request becomes replies: which vehicle is meant, its MAVLink errors as error replies, its progress as
progress replies. Each reply says in ``system`` which vehicle it is about.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic

from petalbus.daemon.bus.errors import BusError, HandlerError
from petalbus.handlers.mavlink.errors import MavlinkError, OrderOvertaken
from petalbus.handlers.mavlink.requests.wanted import AnyWanted, read_wanted

if TYPE_CHECKING:
    from petalbus.daemon.bus.handlers import Context
    from petalbus.handlers.mavlink.fleet import Fleet, Unit
    from petalbus.schemas.record import Record

log = logging.getLogger(__name__)

Handle = Callable[["Record", "Context"], Awaitable[dict[str, Any]]]

Ready = Callable[["Record", int | None], Awaitable[None]]
"""Waits until the vehicle with this system id may be there. Raises NotConnected when the handler is stopping."""


@dataclass(frozen=True, slots=True)
class Job(Generic[AnyWanted]):
    """A request that is being worked on: what is wanted, and of which vehicle."""

    wanted: AnyWanted
    unit: Unit
    context: Context

    async def progress(self, data: dict[str, Any]) -> None:
        """Tell the sender how far it is. Raises OrderOvertaken, see ``progress``."""
        await progress(self.context, {**data, "system": self.unit.system})

    async def tell(self, done: int, total: int | None) -> None:
        """Tell how many are done, of how many (None: not known yet). Raises OrderOvertaken, as above."""
        await self.progress({"done": done, "total": total})


class Desk:
    """Base of what answers requests, each for the vehicle that it names."""

    def __init__(self, fleet: Fleet, *, ready: Ready) -> None:
        self.fleet = fleet
        self._ready = ready

    def answer(self, model: type[AnyWanted], work: Callable[[Job[AnyWanted]], Awaitable[dict[str, Any]]]) -> Handle:
        """The handler of a record type: reads its payload, finds the vehicle, and lets ``work`` do the rest."""

        async def handle(record: Record, context: Context) -> dict[str, Any]:
            system: int | None = None
            try:
                wanted = read_wanted(model, record.data)
                system = wanted.system
                await self._ready(record, system)
                unit = self.fleet.unit(system)
                system = unit.system
                with self.fleet.using(unit):
                    return {**await work(Job(wanted, unit, context)), "system": system}
            except MavlinkError as error:
                detail = {"system": system, **self.fleet.about(error), **error.detail}
                raise HandlerError(str(error), error_code=error.code, data=detail) from error

        return handle

    def lane(self, record: Record) -> bool | str:
        """Requests wait for earlier ones of their sender to the same vehicle only; see ``Bus.on``."""
        return isinstance(record.data, dict) and self.fleet.lane(record.data.get("system"))


async def progress(context: Context, data: dict[str, Any]) -> None:
    """Tell the sender. That nobody hears it is no reason to leave the work half done.

    Raises OrderOvertaken when the lease on the record is lost: another may have it, and the sender was told so.
    """
    try:
        ours = await context.progress(data)
    except BusError as error:
        log.warning("progress could not be told: %s", error)
        return
    if not ours:
        raise OrderOvertaken("given up half-way: the lease on this record is lost, and its sender was told so")
