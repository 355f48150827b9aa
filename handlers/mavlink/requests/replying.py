"""How work on a request becomes replies: which vehicle is meant, its MAVLink errors as error replies, its progress as
progress replies. Each reply says in ``system`` which vehicle it is about.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic
from weakref import WeakKeyDictionary

from petalbus.daemon.bus.errors import BusError, HandlerError
from petalbus.handlers.mavlink.errors import MavlinkError, OrderOvertaken, VehicleBusy
from petalbus.handlers.mavlink.flight.downs import Given
from petalbus.handlers.mavlink.requests.wanted import AnyWanted, read_wanted
from petalbus.schemas.stamps import BOOT_ID, boot_clock_ns, short_boot_id

if TYPE_CHECKING:
    from petalbus.daemon.bus.handlers import Context
    from petalbus.handlers.mavlink.fleet import Fleet, Unit
    from petalbus.schemas.record import Record

log = logging.getLogger(__name__)

SHARED: Final = 96
"""Requests that may be under way or wait, of all vehicles together; each vehicle has the same share of them."""

Handle = Callable[["Record", "Context"], Awaitable[dict[str, Any]]]

Ready = Callable[["Record", int | None], Awaitable[None]]
"""Waits until the vehicle with this system id may be there. Raises NotConnected when the handler is stopping."""


@dataclass(frozen=True, slots=True)
class Job(Generic[AnyWanted]):
    """A request that is being worked on: what is wanted, and of which vehicle."""

    wanted: AnyWanted
    unit: Unit
    context: Context
    record: Record

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

    def answer(
        self,
        model: type[AnyWanted],
        work: Callable[[Job[AnyWanted]], Awaitable[dict[str, Any]]],
        *,
        at_once: int,
        urgent: Callable[[AnyWanted], bool] = lambda _: False,
    ) -> Handle:
        """The handler of a record type: reads its payload, finds the vehicle, and lets ``work`` do the rest.

        ``at_once`` of them run with one vehicle, the others wait, until their deadline at most; what is ``urgent`` does
        not. Register it without a limit of its own: that would let one silent vehicle keep the others waiting.
        """
        turns = _Turns(at_once)

        async def handle(record: Record, context: Context) -> dict[str, Any]:
            system: int | None = None
            try:
                wanted = read_wanted(model, record.data)
                system = wanted.system
                await self._ready(record, system)
                unit = self.fleet.unit(system)
                system = unit.system
                if urgent(wanted):
                    with self.fleet.using(unit):
                        return {**await work(Job(wanted, unit, context, record)), "system": system}
                self._check_share(unit)
                with self.fleet.using(unit):
                    async with turns.turn(unit, record):
                        return {**await work(Job(wanted, unit, context, record)), "system": system}
            except MavlinkError as error:
                detail = {"system": system, **self.fleet.about(error), **error.detail}
                raise HandlerError(str(error), error_code=error.code, data=detail) from error

        return handle

    def _check_share(self, unit: Unit) -> None:
        """Who waits holds a worker of the bus: one vehicle must not take those of the others."""
        share = SHARED // len(self.fleet.units)
        if unit.users >= share:
            raise VehicleBusy(
                f"{unit.users} orders and requests are under way with vehicle {unit.system}, {share} are allowed; "
                "nothing was sent. Try again when some of them have ended"
            )

    def lane(self, record: Record) -> bool | str:
        """Requests wait for earlier ones of their sender to the same vehicle only; see ``Bus.on``."""
        return isinstance(record.data, dict) and self.fleet.lane(record.data.get("system"))


class _Turns:
    """How many requests of one kind run at once, counted for each vehicle by itself."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._free: WeakKeyDictionary[Unit, asyncio.Semaphore] = WeakKeyDictionary()

    @asynccontextmanager
    async def turn(self, unit: Unit, record: Record) -> AsyncIterator[None]:
        """Wait for a turn with this vehicle. Raises VehicleBusy when the record's deadline comes first."""
        free = self._free.setdefault(unit, asyncio.Semaphore(self._at_once))
        if free.locked():
            await self._wait(free, unit, record)
        else:
            await free.acquire()  # at once
        try:
            yield
        finally:
            free.release()

    async def _wait(self, free: asyncio.Semaphore, unit: Unit, record: Record) -> None:
        left = None if record.deadline is None else max(0.0, (record.deadline - boot_clock_ns()) / 1e9)
        try:
            async with asyncio.timeout(left):
                await free.acquire()
        except TimeoutError:
            raise VehicleBusy(
                f"the deadline passed while {self._at_once} earlier requests of this kind were under way with vehicle "
                f"{unit.system}; nothing was sent"
            ) from None
        if record.expired(boot_clock_ns()):
            free.release()
            raise VehicleBusy(f"the deadline passed before vehicle {unit.system} was free; nothing was sent")


def given_at(record: Record) -> Given | None:
    """When a record was given, and by whose clock, and never later than now; None where it does not say so, or
    counts another boot's clock.
    """
    if record.mono is None or record.boot_id is None or short_boot_id(record.boot_id) != BOOT_ID:
        return None
    return Given(min(record.mono, boot_clock_ns()), record.source)


class Telling:
    """Tells progress beside the work, which waits for nothing: what comes while the bus hangs is left out."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._task: asyncio.Task[None] | None = None

    def tell(self, data: dict[str, Any]) -> None:
        """Tell the sender. Never raises."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._tell(data), name="mavlink.progress")

    def end(self) -> None:
        """The work has ended: nothing more is told."""
        if self._task is not None:
            self._task.cancel()

    async def _tell(self, data: dict[str, Any]) -> None:
        try:
            await progress(self._context, data)
        except MavlinkError as error:
            log.warning("%s; what is under way goes on", error)


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
