"""The entry point of ``petalbus bench``."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from rich.console import Console

from petalbus.daemon.bench.process import allowed_cores
from petalbus.daemon.bench.report import print_report
from petalbus.daemon.bench.result import document
from petalbus.daemon.bench.run import Settings, run
from petalbus.daemon.bench.scenarios.all import SCENARIOS
from petalbus.daemon.bench.scenarios.base import Scenario
from petalbus.daemon.bench.sizes import FULL, QUICK
from petalbus.daemon.bench.targets import TARGETS


class WrongOption(ValueError):
    """An option's value cannot be used; the message says which can."""


def bench(
    *,
    quick: bool,
    rounds: int,
    only: list[str] | None,
    pin: str | None,
    output: Path | None,
    json_output: bool,
    server: Path | None,
) -> int:
    """Measure and report; returns the exit code.

    ``quick``: small counts, under a minute for one round. ``rounds``: how often everything is repeated, interleaved.
    ``only``: names of scenarios (None: all). ``pin``: number of the core that all measured processes are kept on
    (None: the first allowed one; ``none``: no pinning). ``output``: a file for the JSON document. ``json_output``: print
    the document instead of tables. ``server``: the server program (None: the one that ``petalbus up`` would run).

    0: everything that is here was measured (missed targets are in the report, not in the exit code). 1: a measurement
    failed. 2: an option cannot be used.
    """
    try:
        settings = Settings(
            scenarios=chosen(only), rounds=_at_least_one(rounds), sizes=QUICK if quick else FULL, core=core(pin), server=server
        )
    except WrongOption as error:
        sys.stderr.write(f"petalbus bench: {error}\n")
        return 2
    result, machine = asyncio.run(run(settings, Console(stderr=True)))
    names = [scenario.NAME for scenario in settings.scenarios]
    asked = {"quick": quick, "rounds": rounds, "scenarios": names}
    targets = [target for target in TARGETS if target.value.scenario in names]
    text = json.dumps(document(result, targets, machine=machine, settings=asked), indent=2) + "\n"
    if output is not None:
        output.write_text(text, encoding="utf-8")
    if json_output:
        sys.stdout.write(text)
    else:
        print_report(Console(), result, settings.scenarios, targets)
    return 1 if result.failures else 0


def chosen(only: list[str] | None) -> list[Scenario]:
    """The scenarios named, in playing order. Raises WrongOption."""
    known = {scenario.NAME: scenario for scenario in SCENARIOS}
    unknown = [name for name in only or () if name not in known]
    if unknown:
        raise WrongOption(f"there is no scenario {unknown[0]!r}; there are {', '.join(known)}")
    return [scenario for name, scenario in known.items() if not only or name in only]


def core(pin: str | None) -> int | None:
    """The core to pin to. Raises WrongOption."""
    allowed = allowed_cores()
    if pin is None:
        return allowed[0]
    if pin == "none":
        return None
    if not pin.isdecimal() or int(pin) not in allowed:
        raise WrongOption(f"pin {pin!r} is no core that may be used here; there are {', '.join(map(str, allowed))}, none")
    return int(pin)


def _at_least_one(rounds: int) -> int:
    if rounds < 1:
        raise WrongOption(f"rounds {rounds} is too few; at least 1")
    return rounds
