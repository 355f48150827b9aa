"""`petalbus replay`: recorded history into a fresh bus."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from petalbus.daemon.cli.common import Data, Json, duration, run, say, say_json
from petalbus.daemon.cli.exits import BadUsage

if TYPE_CHECKING:
    from petalbus.daemon.replay import ReplayProgress

_POINT = "seconds since the start, a stream id, or a time"


def replay(
    into: Annotated[Path, typer.Option("--into", metavar="DIR", help="Data directory of the fresh bus.")],
    start: Annotated[str, typer.Option("--from", metavar="T", help=f"Where to begin: {_POINT}.")] = "start",
    end: Annotated[str, typer.Option("--to", metavar="T", help=f"Where to end: {_POINT}.")] = "end",
    streams: Annotated[
        list[str] | None,
        typer.Option(
            "--stream", metavar="STREAM", help="Only this one (named as for `tail`, or a pattern); repeatable."
        ),
    ] = None,
    speed: Annotated[
        str, typer.Option("--speed", metavar="X", help="1: real time; 10: ten times faster; max: as fast as it goes.")
    ] = "1",
    data: Data = None,
    json: Json = False,
) -> None:
    """Write the history of a bus (running or stopped) into a fresh one, original ids and order kept."""
    from petalbus.daemon.replay import parse_point
    from petalbus.daemon.replay import replay as play

    try:
        first, last = parse_point(start, end=False), parse_point(end, end=True)
    except ValueError as error:
        raise BadUsage(str(error)) from None
    pace = _pace(speed)
    wanted = [key for text in streams or () for key in _keys(text)]

    def tell(progress: ReplayProgress) -> None:
        if json:
            say_json({"event": "progress", **asdict(progress)})
        else:
            typer.echo(f"{progress.records} records, {duration(progress.position)} of the recording", err=True)

    report = run(play(data, into=into, start=first, end=last, streams=wanted, speed=pace, progress=tell), show_log=True)
    if json:
        say_json({"event": "done", **asdict(report)})
        return
    for name, count in report.streams.items():
        say(f"{count:>9} {name}")
    recorded, took = duration(report.duration), duration(report.elapsed)
    say(f"{report.records} records, {recorded} recorded, into {report.into} in {took}")


def _pace(text: str) -> float | None:
    if text == "max":
        return None
    try:
        speed = float(text)
    except ValueError:
        speed = -1.0
    if not 0 <= speed < float("inf"):
        raise BadUsage(f"--speed {text!r} is no speed: write a number such as 1, 0.5 or 10, or max")
    return speed or None


def _keys(text: str) -> list[str]:
    """The streams that ``text`` names, as the recording names them."""
    if any(sign in text for sign in "*?[") or text.startswith("queue:"):
        return [text]
    from petalbus.daemon.bus.keys import Keys
    from petalbus.daemon.cli.streams import parse

    keys = Keys()
    found = parse(keys, text)
    if len(found) > 1:  # an inbox: not every level needs to have been used
        return [f"queue:{found[0].of}:inbox:*"]
    return [found[0].key.removeprefix(keys.prefix)]
