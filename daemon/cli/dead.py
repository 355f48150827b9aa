"""`petalbus dead`: records that could not be handled, and what becomes of them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from petalbus.daemon.cli.common import App, Data, Json, client, parse_json, run, say, say_json, table
from petalbus.daemon.cli.exits import BadUsage

app = typer.Typer(no_args_is_help=True, help="List, show, edit, requeue or drop dead letters.")

Entry = Annotated[str, typer.Argument(metavar="ENTRY", help="The dead letter's id, as `dead list` shows it.")]
Entries = Annotated[list[str], typer.Argument(metavar="ENTRY...", help="Ids, as `dead list` shows them.")]
NewData = Annotated[
    str | None, typer.Option("--payload", metavar="JSON", help="Another payload; - reads it from standard input.")
]
NewType = Annotated[str | None, typer.Option("--type", metavar="TYPE", help="Another record type.")]


@app.command("list")
def list_(
    of: Annotated[str | None, typer.Argument(metavar="[APP]", help="Only this application's.")] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=10_000, help="At most so many for each app.")] = 100,
    data: Data = None,
    json: Json = False,
) -> None:
    """List dead letters, oldest first."""

    async def work() -> None:
        async with client(data) as bus:
            names = [of] if of is not None else await bus.dead.apps()
            letters = [letter for name in names for letter in await bus.dead.list(name, count=count)]
        if json:
            for letter in letters:
                say_json(letter.summary())
            return
        rows = []
        for letter in letters:
            told = letter.summary()
            reason = " ".join(letter.reason.split())
            rows.append((letter.app, letter.entry, told["type"], told["source"], told["id"], letter.attempts, reason))
        table(("APP", "ENTRY", "TYPE", "SOURCE", "ID", ">ATTEMPTS", "REASON"), rows, empty="no dead letters")

    run(work())


@app.command("show")
def show(of: App, entry: Entry, data: Data = None, json: Json = False) -> None:
    """Print one dead letter: the record as it came, the reason, the traceback."""

    async def work() -> None:
        async with client(data) as bus:
            letter = await bus.dead.show(of, entry)
        pairs = zip(letter.fields[::2], letter.fields[1::2], strict=True)
        fields = {name.decode(errors="replace"): value.decode(errors="backslashreplace") for name, value in pairs}
        if json:
            say_json({**letter.summary(), "detail": letter.detail, "fields": fields})
            return
        say(f"reason    {letter.reason}\nattempts  {letter.attempts}\nstream    {letter.stream}")
        width = max(map(len, fields), default=0)
        for name, value in fields.items():
            say(f"  {name:<{width}}  {value}")
        if letter.detail:
            say(letter.detail.rstrip())

    run(work())


@app.command("edit")
def edit(
    of: App,
    entry: Entry,
    payload: NewData = None,
    new_type: NewType = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Change a dead letter's payload or type and leave it dead; prints its new id."""
    if payload is None and new_type is None:
        raise BadUsage("dead edit: give --payload JSON, --type TYPE, or both")
    value = _value(payload)

    async def work() -> None:
        async with client(data) as bus:
            new = await bus.dead.edit(of, entry, data=value, type=new_type)
        if json:
            say_json({"app": of, "entry": new, "was": entry})
        else:
            say(f"edited: {entry} is now {new}")

    run(work())


@app.command("requeue")
def requeue(
    of: App,
    entries: Entries,
    payload: NewData = None,
    new_type: NewType = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Put dead letters back into the inbox that they came from, as they are or edited."""
    value = _value(payload)

    async def work() -> None:
        async with client(data) as bus:
            for entry in entries:
                stored = await bus.dead.requeue(of, entry, data=value, type=new_type)
                if json:
                    say_json({"app": of, "entry": entry, "stream_id": stored})
                else:
                    say(f"requeued {entry} as {stored}")

    run(work())


@app.command("drop")
def drop(of: App, entries: Entries, data: Data = None, json: Json = False) -> None:
    """Delete dead letters for good."""

    async def work() -> None:
        async with client(data) as bus:
            for entry in entries:
                await bus.dead.drop(of, entry)
                if json:
                    say_json({"app": of, "entry": entry, "dropped": True})
                else:
                    say(f"dropped {entry}")

    run(work())


def _value(payload: str | None) -> Any:
    return None if payload is None else parse_json(payload)
