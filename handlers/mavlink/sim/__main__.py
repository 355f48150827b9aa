"""The simulated vehicle's command line."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from petalbus.handlers.mavlink.errors import MavlinkError
from petalbus.handlers.mavlink.sim.autopilot import AUTOPILOTS
from petalbus.handlers.mavlink.sim.failures import Failures
from petalbus.handlers.mavlink.sim.node import SimOptions, SimVehicle
from petalbus.handlers.mavlink.wire.dialect import load_dialect


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        wanted = SimOptions(
            endpoint=options.endpoint,
            autopilot=AUTOPILOTS[options.autopilot],
            system=options.sysid,
            seed=options.seed,
            failures=Failures(
                loss=options.loss,
                delay=options.delay_ms / 1000,
                duplicate=options.duplicate,
                reorder=options.reorder,
            ),
            wrong_echo=options.wrong_echo,
            reboot_after=options.reboot_after,
            more_params=options.more_params,
            quiet=options.quiet,
            silence=frozenset(_command_number(text) for text in options.silence),
        )
        asyncio.run(_run(wanted, journal=options.journal, with_parent=options.exit_with_parent))
    except (MavlinkError, ValueError, OSError) as error:
        sys.stderr.write(f"petalbus sim: {error}\n")
        return 2
    return 0


async def _run(options: SimOptions, *, journal: Path | None, with_parent: bool) -> None:
    parent = os.getppid()
    file = _open_journal(journal)

    def note(entry: dict[str, Any]) -> None:
        if file is not None:
            file.write(json.dumps(entry) + "\n")
            file.flush()

    def orphaned() -> bool:
        return with_parent and os.getppid() != parent

    loop = asyncio.get_running_loop()
    try:
        async with SimVehicle(options, journal=note) as vehicle:
            flying = asyncio.create_task(vehicle.fly(until=orphaned), name="sim.fly")
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, flying.cancel)
            sys.stdout.write(f"simulated {options.autopilot.name} vehicle {options.system} on {options.endpoint}\n")
            sys.stdout.flush()
            await asyncio.wait([flying])
            if not flying.cancelled():
                flying.result()
    finally:
        if file is not None and file is not sys.stdout:
            file.close()


def _open_journal(path: Path | None) -> TextIO | None:
    if path is None:
        return None
    return sys.stdout if str(path) == "-" else path.open("a", encoding="utf-8")


def _command_number(text: str) -> int:
    """A MAV_CMD by number or by name, with or without its prefixes (``NAV_TAKEOFF``, ``takeoff``)."""
    if text.isascii() and text.isdigit():
        return int(text)
    word = text.upper()
    names = {entry.name: number for number, entry in load_dialect().module.enums["MAV_CMD"].items()}
    for name in (word, f"MAV_CMD_{word}", f"MAV_CMD_NAV_{word}"):
        if name in names:
            return int(names[name])
    raise ValueError(f"--silence {text!r}: it is the number or name of a MAV_CMD, such as 400 or NAV_TAKEOFF")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="petalbus-sim", description="A simulated vehicle that speaks MAVLink 2 over UDP.", allow_abbrev=False
    )
    parser.add_argument("--endpoint", default="udpout:127.0.0.1:14551", help="udpout:HOST:PORT or udpin:HOST:PORT")
    parser.add_argument("--autopilot", choices=sorted(AUTOPILOTS), default="px4", help="whose ways to imitate")
    parser.add_argument("--sysid", "--system", type=int, default=1, help="its MAVLink system id")
    parser.add_argument("--seed", type=int, default=1, help="of noise and failures")
    parser.add_argument("--loss", type=float, default=0.0, help="share of datagrams lost, each way (0 to 1)")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="delay, each way")
    parser.add_argument("--duplicate", type=float, default=0.0, help="share of datagrams doubled, each way (0 to 1)")
    parser.add_argument("--reorder", type=float, default=0.0, help="share of datagrams out of order, each way (0 to 1)")
    parser.add_argument(
        "--wrong-echo", type=float, default=0.0, help="share of parameter settings answered with another value (0 to 1)"
    )
    parser.add_argument("--reboot-after", type=float, metavar="SECONDS", help="reboot by itself, once, after so long")
    parser.add_argument(
        "--silence", action="append", default=[], metavar="CMD", help="obey this MAV_CMD, and never acknowledge it"
    )
    parser.add_argument("--quiet", action="store_true", help="no telemetry but heartbeats until somebody asks for it")
    parser.add_argument("--more-params", type=int, default=0, metavar="N", help="so many parameters more")
    parser.add_argument(
        "--journal", type=Path, metavar="FILE", help="append a JSON line for each command; - is the standard output"
    )
    parser.add_argument(
        "--exit-with-parent", action="store_true", help="end when the process that started it has ended"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
