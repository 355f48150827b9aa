"""`petalbus bench`: what the bus costs, as ratios to other ways of doing the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from petalbus.daemon.cli.common import Data, Json


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Small counts, one round: under a minute.")] = False,
    rounds: Annotated[
        int | None, typer.Option("--rounds", metavar="N", min=1, help="How often everything is repeated (5).")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="SCENARIO", help="Only this one; may be repeated.")
    ] = None,
    pin: Annotated[
        str | None, typer.Option("--pin", metavar="CORE", help="Core for all measured processes, or none.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Write the JSON document there.")
    ] = None,
    server: Annotated[
        Path | None, typer.Option("--server", metavar="PROGRAM", help="The server program to run.")
    ] = None,
    data: Data = None,  # noqa: ARG001  # every command takes it; the bench brings a server of its own
    json: Json = False,
) -> None:
    """Measure PetalBus beside plain clients, other buses and the floor, on a server of its own."""
    from petalbus.daemon.bench import main  # brings everything that it measures

    raise typer.Exit(
        main(
            quick=quick,
            rounds=rounds if rounds is not None else 1 if quick else 5,
            only=only,
            pin=pin,
            output=output,
            json_output=json,
            server=server,
        )
    )
