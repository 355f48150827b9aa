"""A member of the app ``app`` in a process of its own, which does its worst where a record tells it to.

    python -m chaos.member URL BUS EFFECTS [name=value ...]      (BusOptions)

Every effect of a handler is one line in the file EFFECTS, written before anything else can happen. Standard output says
``ready``, then ``start ID ATTEMPT`` and ``end ID`` for each run, and answers each line ``stats`` on standard input.
What a record may ask for in its payload (``die`` only while the file EFFECTS.ID.die does not exist, unless ``always``):

    die: before | after     kill -9 before, or after the effect
    settle: seconds         kill -9 so many seconds after the handler returned
    hold: true              wait until the file EFFECTS.go exists
    spin: seconds           keep the event loop busy
    fail: true              raise an exception
    progress: true          tell of it
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.handlers import Context
from petalbus.daemon.bus.options import BusOptions
from petalbus.schemas.record import Record


def say(text: str) -> None:
    """One line for the test."""
    os.write(1, f"{text}\n".encode())


def die() -> None:
    """As kill -9 does it: nothing is cleaned up, nothing is said."""
    os.kill(os.getpid(), signal.SIGKILL)


class Member:
    """The handlers of one process."""

    def __init__(self, bus: Bus, effects: Path) -> None:
        self.bus = bus
        self.effects = effects
        bus.on("rerun", redelivery="rerun", concurrency=None)(self.handle)
        bus.on("report", redelivery="report", concurrency=None)(self.handle)

    async def handle(self, record: Record, told: Context) -> dict[str, Any]:
        """Every kind of work."""
        wish: dict[str, Any] = record.data
        say(f"start {record.id} {told.attempt}")
        if self.wants_to_die(record, wish, "before"):
            die()
        self.effect(record)
        if self.wants_to_die(record, wish, "after"):
            die()
        if wish.get("progress"):
            await told.progress({"pid": os.getpid()})
        if wish.get("hold"):
            while not self.effects.with_suffix(".go").exists():
                await asyncio.sleep(0.005)
        if wish.get("spin"):
            end = time.monotonic() + wish["spin"]
            while time.monotonic() < end:
                sum(range(1000))
        if wish.get("pause"):
            await asyncio.sleep(wish["pause"])
        if wish.get("fail"):
            raise OSError("as wished")
        if "settle" in wish and self.first_time(record):
            asyncio.get_running_loop().call_later(wish["settle"], die)
        say(f"end {record.id}")
        return {"by": os.getpid(), "n": wish.get("n")}

    def wants_to_die(self, record: Record, wish: dict[str, Any], where: str) -> bool:
        """Whether this is the place, and the time."""
        return wish.get("die") == where and (wish.get("always", False) or self.first_time(record))

    def first_time(self, record: Record) -> bool:
        """True once for a record, whatever process asks."""
        mark = Path(f"{self.effects}.{record.id}.die")
        try:
            mark.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def effect(self, record: Record) -> None:
        """The outside world: a line that no kill takes back."""
        descriptor = os.open(self.effects, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, f"{record.id} {os.getpid()}\n".encode())
        os.close(descriptor)

    async def listen(self) -> None:
        """Answer the test's questions until its end of the pipe closes."""
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            if line.strip() == b"stats":
                say("stats " + json.dumps(self.bus.statistics()["consumer"]))


async def main(url: str, bus_name: str, effects: str, *settings: str) -> None:
    """Work until told to stop."""
    pairs = (one.split("=", 1) for one in settings)
    options = BusOptions(**{name: json.loads(value) for name, value in pairs})
    bus = Bus(url, app="app", bus=bus_name, options=options)
    member = Member(bus, Path(effects))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with bus:
        say("ready")
        listening = asyncio.create_task(member.listen(), name="listen")
        await stop.wait()
        listening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await listening
    say("stopped")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
