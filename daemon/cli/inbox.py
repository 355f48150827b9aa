"""`petalbus inbox`: what an application has not settled yet."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from petalbus.daemon.cli.common import App, Data, Json, client, duration, run, say, say_json, table
from petalbus.daemon.cli.exits import Refused


def inbox(
    app: App,
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=10_000, help="At most so many of each level.")] = 50,
    data: Data = None,
    json: Json = False,
) -> None:
    """List the records that wait for APP or that it works on, most urgent first, with their age."""

    async def work() -> None:
        from petalbus.daemon.cli.looking import Waiting, backlog, waiting_records
        from petalbus.daemon.cli.showing import as_object
        from petalbus.daemon.cli.streams import find, parse

        found: list[Waiting] = []
        totals: list[str] = []
        async with client(data) as bus:
            there = {stream.key for stream in await find(bus)}
            streams = [stream for stream in parse(bus.keys, f"inbox:{app}") if stream.key in there]
            if not streams and not await bus.call("SISMEMBER", bus.keys.apps, app):
                known = ", ".join(sorted(name.decode() for name in await bus.call("SMEMBERS", bus.keys.apps)))
                raise Refused(f"no app {app!r} has ever been on this bus; known: {known or 'none'}", code="unknown_app")
            for stream in reversed(streams):
                state = await backlog(bus, stream)
                totals.append(f"{stream.priority} {state.waiting}+{state.pending}")
                found += await waiting_records(bus, stream, count)
        if json:
            for one in found:
                record = one.shown.record
                told: dict[str, Any] = {"problem": one.shown.problem} if record is None else as_object(record)
                say_json({**told, "age_s": one.age, "consumer": one.consumer, "attempt": one.attempt})
            return
        rows = []
        for one in found:
            record = one.shown.record
            what = ("?", "?", one.shown.problem) if record is None else (record.type, record.source, record.id)
            where = "waiting" if one.consumer is None else f"attempt {one.attempt} at {one.consumer}"
            rows.append((one.shown.stream.priority, duration(one.age), *what, where))
        columns = ("PRIORITY", ">AGE", "TYPE", "SOURCE", "ID", "STATE")
        table(columns, rows, empty=f"nothing waits for {app}")
        if rows:
            say(f"waiting + being worked on: {', '.join(totals)}")

    run(work())
