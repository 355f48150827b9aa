"""`petalbus sim`: a simulated vehicle by itself, which knows nothing of a bus."""

from __future__ import annotations

from typing import Annotated

import typer


def sim(
    options: Annotated[list[str] | None, typer.Argument(metavar="[OPTION]...", help="--help shows them all.")] = None,
) -> None:
    """Run a simulated vehicle that speaks MAVLink (`petalbus sim --help`)."""
    from petalbus.handlers.mavlink.sim.__main__ import main

    raise typer.Exit(main(options or []))
