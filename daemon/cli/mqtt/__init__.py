"""`petalbus mqtt`: the link to the broker from the terminal."""

from __future__ import annotations

import typer

from petalbus.daemon.cli.mqtt import sending, state, watching

app = typer.Typer(no_args_is_help=True, help="The link to the MQTT broker: its state, messages, commands.")
app.command("status")(state.status)
app.command("publish")(sending.publish)
app.command("command")(sending.command)
app.command("watch")(watching.watch)
app.command("invalid")(watching.invalid)
