"""`petalbus mav bench`: what the vehicle's side costs, and how near to the possible it comes."""

from __future__ import annotations

from typing import Annotated

import typer

from petalbus.daemon.cli.common import Json


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="A few of the measurements, in about half a minute.")] = False,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="Seeds of the bad wire (20).")] = None,
    json: Json = False,
) -> None:
    """Measure recording, commands, transfers and parameters with simulated vehicles, on a bus of its own."""
    from petalbus.daemon.bench.vehicle.main import bench as measure  # brings everything that it measures

    raise typer.Exit(measure(quick=quick, as_json=json, seeds=seeds))
