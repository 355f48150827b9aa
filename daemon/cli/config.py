"""`petalbus config`: the settings and where they come from."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from petalbus.daemon.cli.common import Data, Json, say, say_json, table
from petalbus.daemon.cli.up import Assignments, ConfigFile

app = typer.Typer(no_args_is_help=True, help="Show the settings that `petalbus up` would use.")


@app.command("show")
def show(
    origin: Annotated[bool, typer.Option("--origin", help="Say where each setting comes from.")] = False,
    config: ConfigFile = None,
    settings: Assignments = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Print every setting with its value, as `petalbus up` with the same options would see it."""
    from petalbus.daemon.config import Settings, load, parse_assignments  # brings pydantic along

    given: dict[str, Any] = {**parse_assignments(settings or []), "data": data, "config": config}
    loaded = load(given)
    rows = list(loaded.shown())
    if json:
        say_json({name: {"value": value, "origin": source} if origin else value for name, value, source in rows})
        return
    shown = [
        (name, "-" if value is None else value, source if origin else Settings.model_fields[name].description)
        for name, value, source in rows
    ]
    table(("SETTING", "VALUE", "ORIGIN" if origin else "MEANING"), shown, empty="")
    for warning in loaded.warnings:
        typer.echo(f"petalbus: {warning}", err=True)


@app.command("example")
def show_example(data: Data = None, json: Json = False) -> None:  # noqa: ARG001  # every command takes --data
    """Print a settings file with every setting, its meaning and its default."""
    from petalbus.daemon.config import FILE_NAME
    from petalbus.daemon.config_example import example

    text = example()
    if json:
        say_json({"file": FILE_NAME, "text": text})
    else:
        say(text.rstrip())
