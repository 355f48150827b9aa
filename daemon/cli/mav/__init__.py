"""`petalbus mav`: the vehicle from the terminal."""

from __future__ import annotations

import typer

from petalbus.daemon.cli.mav import flying, params

app = typer.Typer(no_args_is_help=True, help="The vehicle: its state, commands and parameters.")
app.command("status")(flying.status)
app.command("cmd")(flying.cmd)
app.command("watch")(flying.watch)
app.add_typer(params.app, name="params")
