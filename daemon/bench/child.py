"""The child's end of the conversation with the bench: lines of text on stdin and stdout.

    child   loaded            everything is imported (a good part of a start, and not what is measured)
    bench   open              connect
    child   ready             connected, groups exist, reads are armed
    bench   go                (measured parts only)
    child   result {json}     and it ends

A part that serves (a responder, a background sender) works from ``ready`` until it is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

import uvloop

from petalbus.daemon.bench.job import Job

Role = Callable[["Child"], Coroutine[Any, Any, None] | None]

_PR_SET_PDEATHSIG: Final = 1


class Child:
    """One part in one turn, seen from inside its process."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._input = b""
        # what a library prints shall not be taken for a word of ours
        self._output = os.dup(1)
        os.dup2(2, 1)

    def say(self, word: str) -> None:
        """Send one line."""
        os.write(self._output, word.encode() + b"\n")

    def result(self, **values: Any) -> None:
        """Hand in what was measured."""
        self.say("result " + json.dumps(values))

    def hear(self, word: str) -> None:
        """Wait for the bench's next word, which must be ``word``. Ends the process when the bench is gone."""
        while b"\n" not in self._input:
            self._more()
        line, _, self._input = self._input.partition(b"\n")
        assert line.decode() == word, f"the bench said {line!r}, not {word!r}"

    def ready(self) -> None:
        """Say that everything is connected."""
        self.say("ready")

    def ready_go(self) -> None:
        """Say ``ready`` and wait for ``go``."""
        self.ready()
        self.hear("go")

    async def ready_go_async(self) -> None:
        """The same while the event loop goes on."""
        loop = asyncio.get_running_loop()
        told = asyncio.Event()
        loop.add_reader(sys.stdin.fileno(), told.set)
        self.ready()
        await told.wait()
        loop.remove_reader(sys.stdin.fileno())
        self.hear("go")

    def _more(self) -> None:
        chunk = os.read(sys.stdin.fileno(), 4096)
        if not chunk:
            raise SystemExit(0)
        self._input += chunk


def run(roles: Mapping[str, Role]) -> None:
    """The main program of every Python part: ``ROLE name=value ...`` on the command line."""
    die_with_parent()
    child = Child(Job.parse(sys.argv[2:]))
    role = roles[sys.argv[1]]
    child.say("loaded")
    child.hear("open")
    work = role(child)
    if work is not None:
        uvloop.run(work)


def die_with_parent() -> None:
    """Have the kernel end this process when the bench dies, whatever it dies of (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
