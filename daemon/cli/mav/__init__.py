"""`petalbus mav`: the vehicle from the terminal."""

from __future__ import annotations

import typer

from petalbus.daemon.cli.mav import bench, files, flying, mission, params

app = typer.Typer(no_args_is_help=True, help="The vehicle: its state, commands, parameters, missions and files.")
app.command("status")(flying.status)
app.command("cmd")(flying.cmd)
app.command("rate")(flying.rate)
app.command("watch")(flying.watch)
app.command("shell")(files.shell)
app.command("record")(files.record)
app.command("bench")(bench.bench)
app.add_typer(params.app, name="params")
app.add_typer(mission.app, name="mission")
app.add_typer(files.ftp, name="ftp")
app.add_typer(files.log, name="log")
