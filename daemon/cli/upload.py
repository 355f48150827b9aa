"""`petalbus upload`: flight logs go to the bucket, with a progress bar; they go on without us, too."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

import typer

from petalbus.daemon.cli.common import Data, Json, PriorityName, client, priority_of, run, say, say_json
from petalbus.daemon.cli.exits import BadUsage, Exit, Refused

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.schemas.record import Record

BUCKET: Final = "bucket"
_LONG_S: Final = 300 * 86_400.0


def upload(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Flight logs: .ulg or .bag.")],
    key: Annotated[
        str | None, typer.Option("--key", metavar="KEY", help="The object's key, for one file; else one is made.")
    ] = None,
    priority: PriorityName = None,
    deadline: Annotated[
        float | None, typer.Option("--deadline", metavar="SECONDS", min=0.001, help="Give it up after so long.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Hand them over and do not wait.")] = False,
    data: Data = None,
    json: Json = False,
) -> None:
    """Store flight logs in the bucket. Offline they wait; Ctrl-C leaves them to the daemon."""
    if key is not None and len(files) > 1:
        raise BadUsage("--key is for one file: several would be stored under the same key")
    level = priority_of(priority)
    orders = [_order(file, key) for file in files]
    handed: dict[str, dict[str, Any]] = {}

    async def work() -> None:
        async with client(data) as bus:
            await require_bucket(bus)
            for order in orders:
                receipt = await bus.send(BUCKET, "bucket.upload", order, priority=level, deadline=deadline)
                handed[receipt.id] = order
            if not detach:
                await _wait(bus, handed, level, as_json=json)

    try:
        run(work())
    except KeyboardInterrupt:
        if handed:
            sys.stderr.write("detached: the daemon goes on. See `petalbus uploads`; `petalbus uploads cancel ID`.\n")
            for name, order in handed.items():
                sys.stderr.write(f"  {name}  {order['path']}\n")
        raise typer.Exit(Exit.INTERRUPTED) from None
    if detach:
        for name, order in handed.items():
            say_json({"id": name, "file": order["path"]}) if json else say(f"{name}  {order['path']}")


async def require_bucket(bus: Bus) -> None:
    """Raises Refused where no daemon of this bus has ever had a bucket."""
    if not await bus.ask("EXISTS", bus.keys.status(BUCKET)):
        text = "no bucket is configured: set s3_bucket_name and session_token_url, and start the daemon anew"
        raise Refused(text, code="no_bucket")


def _order(file: Path, key: str | None) -> dict[str, Any]:
    return {"path": str(file.absolute()), **({"s3_key": key} if key is not None else {})}


async def _wait(bus: Bus, handed: dict[str, dict[str, Any]], level: int | None, *, as_json: bool) -> None:
    """Show how far they are until all have ended. Raises Refused when one has failed."""
    import asyncio

    from petalbus.daemon.bus.errors import ReplyError, RequestCancelled

    failed: list[str] = []

    async def one(name: str, order: dict[str, Any], bars: _Bars) -> None:
        file = order["path"]

        def show(reply: Record) -> None:
            if as_json:
                say_json({"id": name, "file": file, "kind": "progress", **reply.data})
                sys.stdout.flush()
            bars.told(name, reply.data)

        bars.add(name, file)
        try:
            reply = await bus.request(
                BUCKET, "bucket.upload", order, id=name, priority=level, timeout=_LONG_S, on_progress=show
            )
        except (ReplyError, RequestCancelled) as error:
            detail = error.detail if isinstance(error, ReplyError) else {"error": "cancelled"}
            failed.append(f"{file}: {detail.get('error', error)}")
            bars.ended(name)
            if as_json:
                say_json({"id": name, "file": file, "kind": "error", **detail})
            return
        bars.ended(name)
        if as_json:
            say_json({"id": name, "file": file, "kind": "result", **reply.data})
        else:
            bars.print(f"{file} -> {reply.data['s3_key']} ({reply.data['size']} bytes)")

    with _Bars() as bars:
        async with asyncio.TaskGroup() as tasks:
            for name, order in handed.items():
                tasks.create_task(one(name, order, bars), name=f"upload-{name}")
    if failed:
        raise Refused("; ".join(failed), code="upload_failed")


class _Bars:
    """A bar for each upload on the standard error, where that is a terminal."""

    def __init__(self) -> None:
        self._shown: Any = None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[state]}"),
            )
            self._shown = Progress(*columns, console=Console(stderr=True), transient=True)
            self._shown.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._shown is not None:
            self._shown.stop()

    def add(self, name: str, file: str) -> None:
        """One more."""
        if self._shown is not None:
            self._tasks[name] = self._shown.add_task(Path(file).name, total=None, state="waiting")

    def told(self, name: str, data: dict[str, Any]) -> None:
        """How far it is, and why it does not move."""
        if self._shown is not None:
            state = str(data.get("error") or data.get("state") or "")
            self._shown.update(self._tasks[name], completed=data.get("bytes", 0), total=data.get("total"), state=state)

    def ended(self, name: str) -> None:
        """It has."""
        if self._shown is not None:
            self._shown.remove_task(self._tasks[name])

    def print(self, text: str) -> None:
        """A line above the bars; on the standard output where there are none."""
        if self._shown is not None and sys.stdout.isatty():
            self._shown.console.print(text, highlight=False, markup=False)
        else:
            say(text)
