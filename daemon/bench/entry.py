"""The entry point of ``petalbus bench``."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from petalbus.daemon.bench.process import allowed_cores
from petalbus.daemon.bench.report import print_report
from petalbus.daemon.bench.result import RunResult, document
from petalbus.daemon.bench.run import Settings, run
from petalbus.daemon.bench.scenarios.all import SCENARIOS
from petalbus.daemon.bench.scenarios.base import Scenario
from petalbus.daemon.bench.sizes import FULL, QUICK
from petalbus.daemon.bench.targets import TARGETS
from petalbus.daemon.server.errors import ServerError


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
    peers: list[str] | None = None,
) -> int:
    """Measure and report; returns the exit code.

    ``quick``: small counts, under a minute for one round. ``rounds``: how often everything is repeated, interleaved.
    ``only``: names of scenarios, ``peers``: of those who are measured (None: all). ``pin``: number of the core that all
    measured processes are kept on (None: the first allowed one; ``none``: no pinning). ``output``: a file for the JSON
    document. ``json_output``: print the document in place of tables. ``server``: the server program (None: the one that
    ``petalbus up`` would run).

    0: everything that is here was measured (a missed target is in the report, not in the exit code). 1: a measurement
    failed. 2: an option cannot be used. 130: interrupted.
    """
    try:
        settings = Settings(
            scenarios=chosen(only),
            rounds=_at_least_one(rounds),
            sizes=QUICK if quick else FULL,
            core=core(pin),
            server=server,
            peers=_named(peers),
        )
        _check_output(output)
        result, machine = asyncio.run(_interruptible(settings))
    except (WrongOption, ServerError) as error:
        sys.stderr.write(f"petalbus bench: {error}\n")
        return 2
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.stderr.write("petalbus bench: interrupted; nothing is reported, nothing is left running\n")
        return 130
    names = [scenario.NAME for scenario in settings.scenarios]
    targets = [target for target in TARGETS if target.value.scenario in names]
    asked = {"quick": quick, "rounds": rounds, "scenarios": names, "peers": peers}
    text = json.dumps(document(result, targets, machine=machine, settings=asked), indent=2) + "\n"
    if output is not None:
        output.write_text(text, encoding="utf-8")
    if json_output:
        sys.stdout.write(text)
    else:
        print_report(Console(), result, settings.scenarios, targets)
    return 1 if result.failures else 0


async def _interruptible(settings: Settings) -> tuple[RunResult, dict[str, Any]]:
    task = asyncio.current_task()
    assert task is not None
    # so that a terminated bench, too, takes its servers and children with it
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await run(settings, Console(stderr=True))


def chosen(only: list[str] | None) -> list[Scenario]:
    """The scenarios named, in playing order. Raises WrongOption."""
    known = {scenario.NAME: scenario for scenario in SCENARIOS}
    _check_names("scenario", only, known)
    return [scenario for name, scenario in known.items() if not only or name in only]


def core(pin: str | None) -> int | None:
    """The core to pin to. Raises WrongOption."""
    allowed = allowed_cores()
    if pin is None:
        return allowed[0]
    if pin == "none":
        return None
    if not pin.isdecimal() or int(pin) not in allowed:
        words = ", ".join(map(str, allowed))
        raise WrongOption(f"pin {pin!r} is no core that may be used here; there are {words}; none does not pin")
    return int(pin)


def _named(peers: list[str] | None) -> frozenset[str] | None:
    _check_names("peer", peers, dict.fromkeys(name for scenario in SCENARIOS for name in scenario.PEERS))
    return frozenset(peers) if peers else None


def _check_names(what: str, names: list[str] | None, known: Iterable[str]) -> None:
    unknown = set(names or ()).difference(known)
    if unknown:
        raise WrongOption(f"there is no {what} {min(unknown)!r}; there are {', '.join(known)}")


def _check_output(output: Path | None) -> None:
    if output is not None and (output.is_dir() or not output.absolute().parent.is_dir()):
        raise WrongOption(f"output {output} is no file in an existing directory")


def _at_least_one(rounds: int) -> int:
    if rounds < 1:
        raise WrongOption(f"rounds {rounds} is too few; at least 1")
    return rounds
