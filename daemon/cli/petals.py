"""`petalbus petals`: what petals there are, and one of them switched on, off, or started anew."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from petalbus.daemon.cli.common import Data, Json, client, duration, run, say, say_json, table
from petalbus.daemon.cli.exits import Refused

_SECONDS = 90.0

app = typer.Typer(invoke_without_command=True, help="List petals; enable, disable, restart or reload one.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The petal's name, or the name of its entry point.")]


@app.callback()
def petals(context: typer.Context, data: Data = None, json: Json = False) -> None:
    """List the petals with their state, version and what they wait for."""
    if context.invoked_subcommand is None:
        told = _ask(data, {"action": "list"})["petals"]
        if json:
            for one in told:
                say_json(one)
        else:
            table(
                ("PETAL", "STATE", "VERSION", "RUNS IN", ">FOR", ">RECORDS", ">HTTP", ">RESTARTS", "REASON"),
                [_row(one) for one in told],
                empty="no petal is installed; `petalbus petal new NAME` makes one",
            )


@app.command()
def enable(name: Name, data: Data = None, json: Json = False) -> None:
    """Start a petal now, and whenever the daemon starts."""
    _act("enable", name, data, json=json)


@app.command()
def disable(name: Name, data: Data = None, json: Json = False) -> None:
    """Stop a petal now, and leave it stopped when the daemon starts."""
    _act("disable", name, data, json=json)


@app.command()
def restart(name: Name, data: Data = None, json: Json = False) -> None:
    """Stop a petal and start it, also one that was given up."""
    _act("restart", name, data, json=json)


@app.command()
def reload(name: Name, data: Data = None, json: Json = False) -> None:
    """Restart a petal from its files as they are now."""
    _act("reload", name, data, json=json)


def _act(action: str, name: str, data: Data, *, json: bool) -> None:
    told = _ask(data, {"action": action, "name": name})["petal"]
    if json:
        say_json(told)
    else:
        say(f"{told['name']} is {told['state']}" + (f": {told['reason']}" if told["reason"] else ""))


def _ask(data: Data, question: dict[str, Any]) -> dict[str, Any]:
    from petalbus.daemon.bus.errors import ReplyError

    async def work() -> dict[str, Any]:
        async with client(data) as bus:
            try:
                answer: dict[str, Any] = (await bus.request("petalbus", "petals", question, timeout=_SECONDS)).data
            except ReplyError as error:
                raise Refused(error.detail.get("message", str(error)), code=error.error_code.lower()) from None
            return answer

    return run(work())


def _row(one: dict[str, Any]) -> tuple[object, ...]:
    counters = one.get("counters") or {}
    records = counters.get("records")
    requests = (counters.get("http") or {}).get("requests")
    return (
        one["name"],
        one["state"],
        one["version"],
        one["isolation"],
        duration(one["for_s"]),
        sum(records.values()) if records else None,
        requests,
        one["restarts"],
        one["reason"],
    )
