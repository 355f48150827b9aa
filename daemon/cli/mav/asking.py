"""Asking the vehicle's handler on the bus, with progress shown where somebody sits at the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from petalbus.daemon.cli.common import client
from petalbus.daemon.cli.exits import Refused

if TYPE_CHECKING:
    from pathlib import Path

    from petalbus.daemon.bus.client import Bus
    from petalbus.schemas.record import Record

VEHICLE: Final = "vehicle"
_MARGIN_S: Final = 5.0
"""Beyond the time that the operation itself may take."""


System = Annotated[
    int | None,
    typer.Option("--system", metavar="N", min=1, max=255, help="Which vehicle, by its system id.", show_default=False),
]


async def ask(
    data: Path | None,
    kind: str,
    payload: dict[str, Any],
    *,
    system: int | None = None,
    timeout: float = 5.0,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Send a request of type ``kind`` to the vehicle (``system``: its id); its result.

    Raises Refused with the vehicle's reason.
    """
    if system is not None:
        payload = {**payload, "system": system}
    async with client(data) as bus:
        return await ask_over(bus, kind, payload, timeout=timeout, on_progress=on_progress)


async def ask_over(
    bus: Bus,
    kind: str,
    payload: Any,
    *,
    timeout: float = 5.0,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """The same on a client that is there already."""
    from petalbus.daemon.bus.errors import ReplyError, RequestCancelled
    from petalbus.schemas.stamps import new_id

    def told(reply: Record) -> None:
        if on_progress is not None and isinstance(reply.data, dict):
            on_progress(reply.data)

    own = new_id()
    try:
        # with a key of its own it waits for no other command line's operation, which may take minutes
        reply = await bus.request(
            VEHICLE, kind, payload, timeout=timeout + _MARGIN_S, id=own, key=own, on_progress=told
        )
    except (ReplyError, RequestCancelled) as error:
        code = error.error_code.lower() if isinstance(error, ReplyError) else error.code
        raise Refused(str(error), code=code) from None
    result: dict[str, Any] = reply.data
    return result


class Bar:
    """A progress bar on the standard error, where that is a terminal; use it with ``with``."""

    def __init__(self, what: str, *, unit: str = "") -> None:
        self._what = what
        self._unit = unit
        self._shown: Any = None
        self._task: Any = None

    def __enter__(self) -> Callable[[dict[str, Any]], None]:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn

            count = DownloadColumn() if self._unit == "B" else MofNCompleteColumn()
            columns = (TextColumn("{task.description}"), BarColumn(), count)
            self._shown = Progress(*columns, console=Console(stderr=True), transient=True)
            self._shown.start()
            self._task = self._shown.add_task(self._what, total=None)
        return self._update

    def __exit__(self, *_error: object) -> None:
        if self._shown is not None:
            self._shown.stop()

    def _update(self, told: dict[str, Any]) -> None:
        if self._shown is not None and "done" in told:
            self._shown.update(self._task, completed=told["done"], total=told.get("total"))
