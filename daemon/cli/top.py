"""`petalbus top`: how the bus is doing, live."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from petalbus.daemon.cli.common import Data, Json, client, duration, grid, run, say_json, show

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.daemon.cli.looking import Backlog
    from petalbus.daemon.cli.streams import Stream


class _Sample(NamedTuple):
    at: float
    inboxes: dict[str, tuple[Stream, Backlog]]
    added: dict[str, int]
    lengths: dict[str, tuple[Stream, int]]
    memory: dict[str, int]


def top(
    once: Annotated[bool, typer.Option("--once", help="Measure for one interval, print, end.")] = False,
    interval: Annotated[
        float, typer.Option("--interval", metavar="SECONDS", min=0.1, max=60, help="Time between two looks.")
    ] = 1.0,
    data: Data = None,
    json: Json = False,
) -> None:
    """Show rates, backlog and oldest age of each app and priority, redeliveries and dead letters."""

    async def work() -> None:
        async with client(data) as bus, aclosing(_measure(bus, interval)) as measured:
            if not (once or json) and sys.stdout.isatty():
                await _live(measured)
            async for told in measured:
                if json:
                    say_json(told)
                else:
                    show(_shown(told))
                sys.stdout.flush()
                if once:
                    break

    try:
        run(work(), show_log=False)
    except KeyboardInterrupt:
        if once:
            raise


async def _live(measured: AsyncIterator[dict[str, Any]]) -> None:
    from rich.live import Live

    with Live(auto_refresh=False, screen=True) as screen:
        async for told in measured:
            screen.update(_shown(told), refresh=True)


async def _measure(bus: Bus, interval: float) -> AsyncGenerator[dict[str, Any], None]:
    """The numbers of one interval after the other, for ever."""
    import asyncio

    before = await _look(bus)
    while True:
        await asyncio.sleep(interval)
        now = await _look(bus)
        yield _told(before, now)
        before = now


async def _look(bus: Bus) -> _Sample:
    import asyncio

    from petalbus.daemon.cli.looking import backlog, memory
    from petalbus.daemon.cli.streams import find

    streams = await find(bus)
    inboxes = [stream for stream in streams if stream.kind == "inbox"]
    others = [stream for stream in streams if stream.kind != "inbox"]
    states = await asyncio.gather(*(backlog(bus, stream) for stream in inboxes))
    infos = await asyncio.gather(*(bus.call("XINFO", "STREAM", stream.key) for stream in others))
    added, lengths = {}, {}
    for stream, flat in zip(others, infos, strict=True):
        info = dict(zip(flat[::2], flat[1::2], strict=True))
        added[stream.key] = int(info[b"entries-added"])
        lengths[stream.key] = stream, int(info[b"length"])
    waiting = {stream.key: (stream, state) for stream, state in zip(inboxes, states, strict=True)}
    return _Sample(time.monotonic(), waiting, added, lengths, await memory(bus))


def _told(before: _Sample, now: _Sample) -> dict[str, Any]:
    """Two looks as numbers: what is, and what happened between them a second."""
    span = now.at - before.at
    inboxes = []
    for key, (stream, state) in now.inboxes.items():
        old = before.inboxes[key][1] if key in before.inboxes else None
        inboxes.append(
            {
                "app": stream.of,
                "priority": stream.priority,
                "in_per_s": round((state.added - (old.added if old else 0)) / span, 1),
                "taken_per_s": round(max(0, state.taken - (old.taken if old else 0)) / span, 1),
                "waiting": state.waiting,
                "waiting_at_least": state.counted_to is not None,
                "pending": state.pending,
                "redelivered": state.again,
                "oldest_s": state.oldest,
            }
        )
    inboxes.sort(key=lambda one: (one["app"], -_LEVELS.index(one["priority"])))
    streams, dead = [], {}
    for key, (stream, length) in now.lengths.items():
        if stream.kind == "dead":
            if length:
                dead[stream.of] = length
            continue
        rate = round((now.added[key] - before.added.get(key, 0)) / span, 1)
        streams.append({"stream": stream.label, "in_per_s": rate, "length": length})
    return {
        "interval_s": round(span, 3),
        "inboxes": inboxes,
        "streams": streams,
        "dead": dead,
        "redelivered": sum(one["redelivered"] for one in inboxes),
        "memory": now.memory,
    }


_LEVELS = ("low", "normal", "high", "critical")


def _shown(told: dict[str, Any]) -> Any:
    from rich.console import Group
    from rich.text import Text

    used, ceiling = told["memory"]["used"] / 2**20, told["memory"]["ceiling"] / 2**20
    of = f" of {ceiling:.0f}" if ceiling else ""
    dead = ", ".join(f"{app} {count}" for app, count in told["dead"].items()) or "none"
    head = f"server memory {used:.1f}{of} MiB    dead letters: {dead}    redelivered: {told['redelivered']}\n"
    inboxes = [
        (
            one["app"],
            one["priority"],
            one["in_per_s"],
            one["taken_per_s"],
            f"{one['waiting']}{'+' if one['waiting_at_least'] else ''}",
            one["pending"],
            one["redelivered"],
            "" if one["oldest_s"] is None else duration(one["oldest_s"]),
        )
        for one in told["inboxes"]
    ]
    columns = ("APP", "PRIORITY", ">IN/s", ">TAKEN/s", ">WAITING", ">PENDING", ">AGAIN", ">OLDEST")
    streams = [(one["stream"], one["in_per_s"], one["length"]) for one in told["streams"]]
    return Group(Text(head), grid(columns, inboxes), Text(""), grid(("STREAM", ">IN/s", ">LENGTH"), streams))
