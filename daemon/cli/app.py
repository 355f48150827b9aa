"""All commands in one place, and how they end."""

from __future__ import annotations

import os
import sys
from typing import Final

import typer

from petalbus.daemon.cli import (
    apps,
    bench,
    config,
    dead,
    inbox,
    mav,
    mqtt,
    petal,
    petals,
    replay,
    request,
    send,
    sim,
    status,
    sync,
    tail,
    top,
    up,
    upload,
    uploads,
    version,
)
from petalbus.daemon.cli.exits import Exit, report

app: Final = typer.Typer(
    name="petalbus",
    help="Event-sourced message bus for drone companion computers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("up")(up.up)
app.command("send")(send.send)
app.command("request")(request.request)
app.command("tail")(tail.tail)
app.command("inbox")(inbox.inbox)
app.command("apps")(apps.apps)
app.command("status")(status.status)
app.command("top")(top.top)
app.command("replay")(replay.replay)
app.command("bench")(bench.bench)
app.command("upload")(upload.upload)
app.command("sim", context_settings={"ignore_unknown_options": True, "help_option_names": []})(sim.sim)
app.command("version")(version.version)
app.add_typer(config.app, name="config")
app.add_typer(dead.app, name="dead")
app.add_typer(mav.app, name="mav")
app.add_typer(mqtt.app, name="mqtt")
app.add_typer(petal.app, name="petal")
app.add_typer(petals.app, name="petals")
app.add_typer(sync.app, name="sync")
app.add_typer(uploads.app, name="uploads")


def run(arguments: list[str] | None = None) -> int:
    """Run one command; its exit code. Errors become one line on the standard error."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        code = app(args=words, prog_name="petalbus", standalone_mode=False)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output (`| head`) has seen enough. The interpreter must not try to flush the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK
    except Exception as error:  # noqa: BLE001  # the one place where every error becomes a line and an exit code
        return report(error, as_json="--json" in words)
    return code if isinstance(code, int) else Exit.OK
