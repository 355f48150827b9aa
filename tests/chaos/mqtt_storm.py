"""Messages both ways while the daemon, the broker and the Redis server are killed at random.

    PYTHONPATH=src:tests python -m chaos.mqtt_storm --messages 3000 --seed 1 --kills 12 [--forget]

Commands go to a petal that counts its effects; other messages leave through the outbox. At the end: nothing lost,
nothing executed twice, order kept. ``--forget``: the broker loses its sessions when it dies; then what it had accepted
and not yet brought is its own loss, and only that.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from chaos.counting_petal import EFFECTS
from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.errors import BusError
from petalbus.handlers.mqtt import words
from petalbus.schemas.record import Record

from support.broker import Mosquitto
from support.cloud import Cloud
from support.procs import child_environment
from support.servers import kill_leftovers

DEVICE = "org/ORG1/device/Instance-m1"
OUT = "storm/out"
THING = {"thing": {"thingName": "Instance-m1", "lastReported": {"organizationId": "ORG1"}}}


@dataclass
class Outcome:
    """What is left to judge."""

    seed: int
    executed: Counter[str] = field(default_factory=Counter)
    answers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    stored: list[int] = field(default_factory=list)
    out: list[int] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def lost(self, count: int) -> dict[str, list[int]]:
        """Commands without effect and without an answer, and messages that never came out."""
        silent = [n for n in range(count) if not self.executed[f"c{n}"] and f"c{n}" not in self.answers]
        return {"commands": silent, "messages": sorted(set(range(count)) - set(self.out))}

    @property
    def twice(self) -> list[str]:
        """Commands with more than one effect."""
        return [name for name, times in self.executed.items() if times > 1]

    @property
    def unknown(self) -> int:
        """Commands that were running when their process died: answered as such, never run again."""
        return sum(any(a.get("error_code") == "OUTCOME_UNKNOWN" for a in told) for told in self.answers.values())

    def disorder(self) -> list[tuple[str, int, int]]:
        """Pairs that came in another order than they were published, by their first occurrences."""
        ways = (("out", self.out), ("in", self.stored))
        return [(way, one, two) for way, numbers in ways for one, two in pairwise(_first(numbers)) if two < one]

    @property
    def repeated(self) -> int:
        """Messages that the broker got more than once: allowed, and few."""
        return len(self.out) - len(set(self.out))


def _first(numbers: list[int]) -> list[int]:
    return list(dict.fromkeys(numbers))


class Storm:
    """One run, in a folder of its own."""

    def __init__(self, folder: Path, *, seed: int, forget: bool, careful: bool = True) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.data.mkdir()
        self.effects = folder / "effects"
        self.effects.touch()
        (folder / "thing.json").write_text(json.dumps(THING))
        (folder / "broker").mkdir()
        self.broker = Mosquitto(folder / "broker", careful=careful)
        self.forget = forget
        self.random = random.Random(seed)
        self.outcome = Outcome(seed)
        self.daemon: asyncio.subprocess.Process | None = None

    async def start_daemon(self) -> None:
        """`petalbus up` on the folder; returns when it is ready."""
        settings = {
            "mqtt_url": f"mqtt://127.0.0.1:{self.broker.port}",
            "organization_file": self.folder / "thing.json",
            "machine_id": "m1",
            "petals_paths": "chaos.counting_petal:CountingPetal",
            "mqtt_rate": 100_000,
        }
        given = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        log = (self.folder / "daemon.log").open("ab")
        with log:
            self.daemon = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "petalbus.daemon", "up", "--data", str(self.data), *given),
                env=child_environment({EFFECTS: str(self.effects)}),
                stdout=log,
                stderr=log,
            )

    def server_pid(self) -> int | None:
        """The embedded server's."""
        try:
            told = json.loads((self.data / "bus.json").read_text())
        except (OSError, ValueError):
            return None
        pid = told.get("server_pid")
        return pid if isinstance(pid, int) else None

    async def kill_one(self) -> None:
        """kill -9 of one of the three; the daemon and the broker are started again by us, the server by the daemon."""
        whom = self.random.choice(("daemon", "broker", "server"))
        self.outcome.kills[whom] += 1
        if whom == "broker":
            self.broker.kill_saved()
            if self.forget:
                for file in (self.folder / "broker").glob("mosquitto.db*"):
                    file.unlink()
            await asyncio.sleep(self.random.uniform(0.0, 0.3))
            self.broker.start()
        elif whom == "server":
            pid = self.server_pid()
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        elif self.daemon is not None:
            self.daemon.kill()
            await self.daemon.wait()
            await asyncio.sleep(self.random.uniform(0.0, 0.3))
            await self.start_daemon()

    async def stop(self) -> None:
        """End what was started."""
        if self.daemon is not None and self.daemon.returncode is None:
            self.daemon.terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(15):
                    await self.daemon.wait()
            if self.daemon.returncode is None:
                self.daemon.kill()
                await self.daemon.wait()
        kill_leftovers(self.data)
        self.broker.kill()


async def produce(bus: Bus, count: int, rate: float) -> None:
    """Messages for the broker, as a petal publishes them: tried again by its id until it is stored."""
    start = time.monotonic()
    for number in range(count):
        data = {"topic": OUT, "payload": {"n": number}, "qos": 1}
        while True:
            try:
                await bus.send(words.APP, words.PUBLISH, data, id=f"out-{number}")
                break
            except BusError:
                await asyncio.sleep(0.05)
        await asyncio.sleep(max(0.0, start + number / rate - time.monotonic()))


async def command(cloud: Cloud, count: int, rate: float) -> None:
    """Commands from the cloud."""
    start = time.monotonic()
    for number in range(count):
        message = {"messageId": f"c{number}", "command": "counting/count", "waitResponse": True, "data": {"n": number}}
        cloud.publish(f"{DEVICE}/command/edge", message)
        await asyncio.sleep(max(0.0, start + number / rate - time.monotonic()))


async def run(*, messages: int, rate: float, kills: int, seed: int, forget: bool = False) -> Outcome:
    """One storm from its beginning to its judgement."""
    with tempfile.TemporaryDirectory(prefix="pb-storm-", dir="/tmp") as name:
        storm = Storm(Path(name), seed=seed, forget=forget)
        begun = time.monotonic()
        storm.broker.start()
        cloud = Cloud(storm.broker.port, f"{DEVICE}/response", OUT)
        try:
            cloud.start()
            await storm.start_daemon()
            await until((storm.data / "bus.sock").exists, 20, "the bus is there")
            async with Bus(f"unix://{storm.data}/bus.sock", app="storm", bus="petalbus") as bus:
                await until_connected(bus)
                work = [
                    asyncio.create_task(produce(bus, messages, rate), name="out"),
                    asyncio.create_task(command(cloud, messages, rate), name="in"),
                ]
                for _ in range(kills):
                    await asyncio.sleep(storm.random.uniform(0.3, 2.0) * messages / rate / max(1, kills))
                    await storm.kill_one()
                await asyncio.gather(*work)
                await _drained(storm, cloud, messages)
                storm.outcome.stored = await _stored(bus)
        finally:
            cloud.stop()
            await storm.stop()
        storm.outcome.seconds = time.monotonic() - begun
        return storm.outcome


async def _drained(storm: Storm, cloud: Cloud, messages: int) -> None:
    """Wait until everything has come, or nothing has for ten seconds."""
    outcome, before, quiet = storm.outcome, -1, time.monotonic()
    while time.monotonic() - quiet < 10:
        outcome.executed = Counter(storm.effects.read_text().split())
        outcome.out = [message["n"] for message in cloud.messages(OUT)]
        outcome.answers = {}
        for message in cloud.messages(f"{DEVICE}/response"):
            outcome.answers.setdefault(message["messageId"], []).append(message)
        now = len(outcome.executed) + len(outcome.out) + len(outcome.answers)
        if len(outcome.answers) == messages and len(set(outcome.out)) == messages:
            return
        if now != before:
            before, quiet = now, time.monotonic()
        await asyncio.sleep(0.2)


async def _stored(bus: Bus) -> list[int]:
    """The commands' numbers as they lie in the stream."""
    rows = await bus.ask("XRANGE", bus.keys.topic(words.TOPIC), "-", "+")
    records = [Record.from_fields(fields) for _, fields in rows]
    return [int(record.data["payload"]["data"]["n"]) for record in records if "command" in record.data["topic"]]


async def until(condition: Any, seconds: float, what: str) -> None:
    """Wait until ``condition()``; TimeoutError after ``seconds``."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)
    assert condition(), what


async def until_connected(bus: Bus) -> None:
    """Wait until the link is up."""
    async with asyncio.timeout(30):
        while await bus.ask("HGET", words.link_key(bus.keys), "connected") != b"1":
            await asyncio.sleep(0.05)


def main() -> None:
    """Print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=3000)
    parser.add_argument("--rate", type=float, default=300.0)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    parser.add_argument("--forget", action="store_true", help="the broker loses its sessions")
    given = parser.parse_args()
    outcome = asyncio.run(run(**vars(given)))
    lost = outcome.lost(given.messages)
    sys.stdout.write(
        f"seed {outcome.seed}: {outcome.seconds:.0f} s, killed {dict(outcome.kills)}\n"
        f"commands lost {len(lost['commands'])}, twice {len(outcome.twice)}, outcome unknown {outcome.unknown}\n"
        f"messages lost {len(lost['messages'])}, repeated {outcome.repeated}, out of order {outcome.disorder()}\n"
    )
    sys.exit(bool(lost["commands"] or lost["messages"] or outcome.twice or outcome.disorder()))


if __name__ == "__main__":
    main()
