"""``python -m petalbus.daemon.bench``: the bench without the rest of the command line."""

from __future__ import annotations

import argparse
from pathlib import Path

from petalbus.daemon.bench.entry import bench


def main() -> int:
    """Read the options and run."""
    parser = argparse.ArgumentParser(prog="python -m petalbus.daemon.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small counts, one round")
    parser.add_argument("--rounds", type=int, help="how often everything is repeated (default 5, with --quick 1)")
    parser.add_argument("--only", action="append", metavar="SCENARIO", help="only this scenario; may be repeated")
    parser.add_argument("--peer", action="append", metavar="PEER", help="only this peer; may be repeated")
    parser.add_argument("--pin", metavar="CORE", help="core for all measured processes, or none (default: the first)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the JSON document there")
    parser.add_argument("--json", action="store_true", help="print the JSON document in place of tables")
    parser.add_argument("--server", type=Path, metavar="PROGRAM", help="the server program to run")
    given = parser.parse_args()
    rounds = given.rounds if given.rounds is not None else 1 if given.quick else 5
    return bench(
        quick=given.quick,
        rounds=rounds,
        only=given.only,
        pin=given.pin,
        output=given.output,
        json_output=given.json,
        server=given.server,
        peers=given.peer,
    )


if __name__ == "__main__":
    raise SystemExit(main())
