"""How work on a request becomes replies: its MAVLink errors as error replies, its progress as progress replies."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from petalbus.daemon.bus.errors import BusError, HandlerError
from petalbus.handlers.mavlink.errors import MavlinkError, OrderOvertaken

if TYPE_CHECKING:
    from petalbus.daemon.bus.handlers import Context
    from petalbus.schemas.record import Record

log = logging.getLogger(__name__)

Work = Callable[["Record", "Context"], Awaitable[dict[str, Any]]]


def told(work: Work) -> Work:
    """Work whose MAVLink errors are error replies."""

    async def handle(record: Record, context: Context) -> dict[str, Any]:
        try:
            return await work(record, context)
        except MavlinkError as error:
            raise HandlerError(str(error), error_code=error.code, data=error.detail) from error

    return handle


def teller(context: Context) -> Callable[[int, int | None], Awaitable[None]]:
    """Tells how many are done, of how many (None: not known yet). Raises OrderOvertaken, see ``progress``."""

    async def tell(done: int, total: int | None) -> None:
        await progress(context, {"done": done, "total": total})

    return tell


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
