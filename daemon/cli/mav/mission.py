"""`petalbus mav mission`: missions, fences and rally points, from and to the files of ground stations."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from petalbus.daemon.cli.common import Data, Json, run, say, say_json, table
from petalbus.daemon.cli.exits import BadUsage, Refused
from petalbus.daemon.cli.mav.asking import Bar, System, ask

if TYPE_CHECKING:
    from petalbus.handlers.mavlink.missions.files import Plan
    from petalbus.handlers.mavlink.missions.items import MissionItem

app = typer.Typer(no_args_is_help=True, help="Missions, fences and rally points.")

_SECONDS: Final = 300.0
_KINDS: Final = ("mission", "fence", "rally")

Kind = Annotated[str, typer.Option("--kind", metavar="KIND", help="mission, fence or rally")]


@app.command("upload")
def upload(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a .plan, or a text of waypoints (QGC WPL 110)")],
    system: System = None,
    data: Data = None,
) -> None:
    """Send what a file holds to the vehicle, in place of what is there."""
    plan, home_is_first = _read(file)
    for kind in _KINDS:
        items: list[MissionItem] = getattr(plan, kind)
        if items:
            wanted = {"kind": kind, "items": [one.to_json() for one in items], "home_is_first": home_is_first}
            with Bar(kind) as show:
                done = run(
                    ask(data, "mavlink.mission.upload", wanted, system=system, timeout=_SECONDS, on_progress=show)
                )
            say(f"{kind}: {done['items']} items are on the vehicle")
            for line in done["changed"]:
                say(f"  note: {line}")
            if done["feasible"] is False:
                why = "; ".join(done["texts"]) or "it does not say why"
                say(f"  THE VEHICLE WILL NOT FLY THE MISSION: {why}")


@app.command("download")
def download(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a .plan for all kinds, else waypoints as text")],
    system: System = None,
    data: Data = None,
) -> None:
    """Write what the vehicle has into a file."""
    from petalbus.handlers.mavlink.missions.files import Plan, to_plan, to_wpl

    if file.suffix == ".plan":
        mission, fence, rally = (_fetch(data, system, kind) for kind in _KINDS)
        plan = Plan(mission=mission, fence=fence, rally=rally)
        text, count = jsonlib.dumps(to_plan(plan), indent=2), sum(len(getattr(plan, kind)) for kind in _KINDS)
    else:
        items = _fetch(data, system, "mission", keep_home=True)
        text, count = to_wpl(items), len(items)
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Refused(f"{file} cannot be written: {error.strerror or error}") from None
    say(f"{count} items in {file}")


@app.command("show")
def show(kind: Kind = "mission", system: System = None, data: Data = None, json: Json = False) -> None:
    """Show what the vehicle has."""
    items = _fetch(data, system, kind)
    if json:
        for one in items:
            say_json(one.to_json())
        return
    rows = [
        (one.seq, one.command, one.frame, *(f"{value:g}" for value in (*one.params, *one.place, one.z)))
        for one in items
    ]
    columns = ("SEQ", ">COMMAND", ">FRAME", ">P1", ">P2", ">P3", ">P4", ">X", ">Y", ">Z")
    table(columns, rows, empty=f"the vehicle has no {kind} items")


@app.command("clear")
def clear(kind: Kind = "mission", system: System = None, data: Data = None) -> None:
    """Remove all items of a kind from the vehicle."""
    run(ask(data, "mavlink.mission.clear", {"kind": _checked(kind)}, system=system, timeout=30.0))
    say(f"the vehicle has no {kind} items any more")


@app.command("current")
def current(
    seq: Annotated[int, typer.Argument(metavar="SEQ", help="as the vehicle counts", min=0)],
    system: System = None,
    data: Data = None,
) -> None:
    """Go on with an item."""
    run(ask(data, "mavlink.mission.current", {"seq": seq}, system=system, timeout=30.0))
    say(f"item {seq} is the current one")


def _fetch(data: Data, system: System, kind: str, *, keep_home: bool = False) -> list[MissionItem]:
    from petalbus.handlers.mavlink.missions.items import MissionItem

    wanted: dict[str, Any] = {"kind": _checked(kind), "keep_home": keep_home}
    with Bar(kind) as show_progress:
        told = run(
            ask(data, "mavlink.mission.download", wanted, system=system, timeout=_SECONDS, on_progress=show_progress)
        )
    return [MissionItem.from_json(one) for one in told["items"]]


def _checked(kind: str) -> str:
    if kind not in _KINDS:
        raise BadUsage(f"--kind {kind!r}: it is mission, fence or rally")
    return kind


def _read(file: Path) -> tuple[Plan, bool]:
    """What a file holds, and whether its first item is ArduPilot's home."""
    from petalbus.handlers.mavlink.missions.files import Plan, from_plan, from_wpl
    from petalbus.handlers.mavlink.missions.items import MissionInvalid

    try:
        text = file.read_text(encoding="utf-8")
        if text.lstrip("\ufeff \n").startswith("{"):
            return from_plan(jsonlib.loads(text)), False
        return Plan(mission=from_wpl(text)), True
    except (OSError, UnicodeDecodeError) as error:
        raise BadUsage(f"{file} cannot be read: {error}") from None
    except (MissionInvalid, jsonlib.JSONDecodeError) as error:
        raise BadUsage(f"{file}: {error}") from None
