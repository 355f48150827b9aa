"""`petalbus uploads`: what goes to the bucket, and pausing, resuming and cancelling it."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from petalbus.daemon.cli.common import Data, Json, client, duration, run, say, say_json, table
from petalbus.daemon.cli.exits import BadUsage, Refused
from petalbus.daemon.cli.upload import BUCKET, require_bucket

_SECONDS: Final = 10.0
_FIRST: Final = 3
"""The priority of questions: many uploads may wait in the inbox."""

app = typer.Typer(invoke_without_command=True, help="List uploads to the bucket; pause, resume or cancel them.")

Id = Annotated[str | None, typer.Argument(metavar="[ID]", help="An upload, as the list shows it.", show_default=False)]
All = Annotated[bool, typer.Option("--all", help="All of them.")]


@app.callback()
def uploads(context: typer.Context, data: Data = None, json: Json = False) -> None:
    """List uploads: those under way first, then those that have ended lately."""
    if context.invoked_subcommand is not None:
        return
    told = _ask(data, "bucket.uploads", {})
    shown = [*told["uploads"], *told["ended"]]
    if json:
        for one in shown:
            say_json(one)
        return
    if told["paused"]:
        say("all uploads are paused; `petalbus uploads resume --all` lets them go on")
    columns = ("ID", "FILE", "STATE", ">DONE", ">BYTES", ">BYTES/S", ">LEFT", "PRIORITY", ">ATTEMPTS", "LAST ERROR")
    table(columns, [_row(one) for one in shown], empty="nothing is uploaded now")


@app.command()
def pause(upload: Id = None, every: All = False, data: Data = None, json: Json = False) -> None:
    """Pause an upload, or all. They stay so over a restart."""
    _act("bucket.pause", upload, data, every=every, json=json)


@app.command()
def resume(upload: Id = None, every: All = False, data: Data = None, json: Json = False) -> None:
    """Let an upload go on, or all."""
    _act("bucket.resume", upload, data, every=every, json=json)


@app.command()
def cancel(upload: Id = None, every: All = False, data: Data = None, json: Json = False) -> None:
    """Give an upload up, or all: what the store has of it is taken away."""
    wanted = _one_or_all(upload, every=every)

    async def work() -> list[str]:
        async with client(data) as bus:
            await require_bucket(bus)
            if wanted is None:
                told = await bus.request(BUCKET, "bucket.uploads", {}, timeout=_SECONDS, priority=_FIRST)
                return [one["id"] for one in told.data["uploads"] if await bus.cancel(one["id"])]
            if not await bus.cancel(wanted):
                raise Refused(f"there is no upload {wanted!r} that has not ended", code="no_such_upload")
            return [wanted]

    for name in run(work()):
        say_json({"id": name, "cancelled": True}) if json else say(f"{name} is cancelled")


def _act(kind: str, upload: str | None, data: Data, *, every: bool, json: bool) -> None:
    wanted = _one_or_all(upload, every=every)
    told = _ask(data, kind, {} if wanted is None else {"id": wanted})
    if json:
        say_json(told)
    else:
        say(f"{wanted or 'all'}: {'paused' if told['paused'] else 'going on'}")


def _one_or_all(upload: str | None, *, every: bool) -> str | None:
    if (upload is None) != every:
        raise BadUsage("name an upload, or say --all")
    return upload


def _ask(data: Data, kind: str, question: dict[str, Any]) -> dict[str, Any]:
    from petalbus.daemon.bus.errors import ReplyError

    async def work() -> dict[str, Any]:
        async with client(data) as bus:
            await require_bucket(bus)
            try:
                reply = await bus.request(BUCKET, kind, question, timeout=_SECONDS, priority=_FIRST)
            except ReplyError as error:
                raise Refused(error.detail.get("message", str(error)), code=error.error_code.lower()) from None
            answer: dict[str, Any] = reply.data
            return answer

    return run(work())


def _row(one: dict[str, Any]) -> tuple[object, ...]:
    total, done, rate = one["total"], one["bytes"], one["rate"]
    share = f"{done * 100 // total} %" if total else ""
    left = duration((total - done) / rate) if total and rate else ""
    name = str(one["file"]).rpartition("/")[2]
    return (
        one["id"],
        name,
        one["state"],
        share,
        total,
        round(rate) if rate else "",
        left,
        one["priority"],
        one["attempts"],
        one["last_error"],
    )
