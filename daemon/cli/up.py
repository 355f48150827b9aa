"""`petalbus up`: run a bus."""

from __future__ import annotations

import gc
import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from petalbus.daemon.cli.common import Data, Json
from petalbus.daemon.cli.exits import BadUsage

ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings file; <data>/petalbus.toml when not given.")
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any setting (`petalbus config show` lists them)."),
]


def up(
    data: Data = None,
    config: ConfigFile = None,
    redis: Annotated[
        str | None, typer.Option("--redis", metavar="URL", help="Use this server in place of the embedded one.")
    ] = None,
    sim: Annotated[bool, typer.Option("--sim", help="Start a simulated vehicle as well.")] = False,
    mavlink: Annotated[
        str | None, typer.Option("--mavlink", metavar="ENDPOINT", help="Connect a vehicle: udpin:0.0.0.0:14550")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option("--log-level", metavar="LEVEL", help="debug, info, warning or error.")
    ] = None,
    settings: Assignments = None,
    json: Json = False,
) -> None:
    """Run a bus until Ctrl-C (SIGINT) or SIGTERM. Ready when the ready line is printed."""
    if sim and mavlink:
        raise BadUsage("--sim and --mavlink exclude each other: the simulated vehicle brings its own endpoint")
    gc.disable()  # nothing that is imported becomes garbage: a tenth of the time to be ready
    from petalbus.daemon.config import load, parse_assignments  # brings pydantic along
    from petalbus.daemon.runtime import Report, run  # the whole daemon

    given: dict[str, Any] = {**parse_assignments(settings or [])}
    named = {"data": data, "config": config, "redis": redis, "mavlink_endpoint": mavlink, "log_level": log_level}
    given |= {name: value for name, value in named.items() if value is not None}
    if sim:
        given["sim_enabled"] = True
    elif mavlink:
        given["sim_enabled"] = False  # what is named on the command line wins over a file that enables the simulator
    loaded = load(given)
    report = Report(level=loaded.settings.log_level, as_json=json, words=words)
    gc.freeze()  # and it is not looked through again and again later
    gc.enable()
    try:
        for warning in loaded.warnings:
            logging.getLogger("petalbus.config").warning(warning)
        run(loaded.settings, report)
    finally:
        report.close()


def words(event: dict[str, Any]) -> str | None:
    """The line for a person; None for what the log says already."""
    match event["event"]:
        case "ready":
            server = event["server"] + (f" (process {event['server_pid']})" if event["server_pid"] else "")
            adopted = ", adopted" if event["adopted"] else ""
            vehicle = ""
            if event["mavlink"]:
                kind = "simulated vehicle" if event["sim"] else "vehicle"
                heard = "heard" if event["vehicle_heard"] else "not heard yet"
                vehicle = f"; {kind} on {event['mavlink']} {heard}"
            http = f"; HTTP at {event['http']}" if event.get("http") else ""
            return (
                f"petalbus {event['version']} ready in {event['ready_s']:.2f} s as process {event['pid']}: "
                f"data {event['data']}; server {server}{adopted} at {event['url']}{vehicle}{http}"
            )
        case "stopping":
            return f"stopping ({event['signal']})"
        case "stopped":
            left = event.get("left_behind")
            return f"stopped; left behind: {', '.join(left)}" if left else "stopped"
        case _:
            return None
