"""`petalbus mqtt watch` and `invalid`: what comes in and goes out, and what was no message."""

from __future__ import annotations

import json as jsonlib
import shutil
import sys
import time
from typing import Annotated, Any, Final

import typer

from petalbus.daemon.cli.common import Data, Json, client, run, say, say_json, table
from petalbus.daemon.cli.mqtt.flow import Flow, Seen, clock, invalid_of

_ARROWS: Final = {"in": "<-", "out": "->", "invalid": "!!", "state": "=="}
_WIDE: Final = 400
_SHOWN: Final = 60


def watch(
    wanted: Annotated[
        str | None, typer.Argument(metavar="[FILTER]", help="Only topics that fit, such as org/+/device/+/response.")
    ] = None,
    count: Annotated[int | None, typer.Option("--count", "-n", min=1, help="End after so many.")] = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Print what comes in (<-), goes out (->), is invalid (!!), and how the link changes (==), until Ctrl-C."""

    async def work() -> None:
        async with client(data) as bus:
            flow, left = Flow(bus), count
            await flow.open()
            while left is None or left > 0:
                shown = [one for one in await flow.read() if _fits(one, wanted)][:left]
                for one in shown:
                    _show(one, json=json)
                sys.stdout.flush()
                left = None if left is None else left - len(shown)

    try:
        run(work(), show_log=True)
    except KeyboardInterrupt:
        if count is not None:
            raise


def invalid(
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=10_000, help="So many of the newest.")] = 100,
    data: Data = None,
    json: Json = False,
) -> None:
    """List what came in and was not what its topic stands for, oldest first, with the reason."""
    found = run(_kept(data, count))
    if json:
        for one in found:
            say_json({**one.told(), **one.record.data})
        return
    rows = []
    for one in found:
        said = one.record.data
        when = time.strftime("%Y-%m-%d ", time.localtime(one.time // 1_000_000_000)) + clock(one.time)
        rows.append((when, one.topic, said.get("bytes"), said.get("reason"), _short(one.payload, _SHOWN)))
    table(("WHEN", "TOPIC", ">BYTES", "REASON", "BEGINS WITH"), rows, empty="no invalid messages are kept")


async def _kept(data: Data, count: int) -> list[Seen]:
    from petalbus.handlers.mqtt import words
    from petalbus.schemas.errors import RecordInvalid
    from petalbus.schemas.record import Record

    found = []
    async with client(data) as bus:
        for entry, fields in await bus.ask("XREVRANGE", bus.keys.topic(words.INVALID), "+", "-", "COUNT", count):
            try:
                record = Record.from_fields(fields, stream_id=entry.decode())
                if isinstance(record.data, dict):
                    found.append(invalid_of(record))
            except RecordInvalid:
                continue
    return found[::-1]


def _fits(one: Seen, wanted: str | None) -> bool:
    from petalbus.handlers.mqtt.words import matches

    return wanted is None or (one.topic is not None and matches(wanted, one.topic))


def _show(one: Seen, *, json: bool) -> None:
    if json:
        say_json(one.told())
        return
    width = shutil.get_terminal_size((_WIDE, 24)).columns if sys.stdout.isatty() else _WIDE
    head = f"{clock(one.time)} {_ARROWS[one.direction]} "
    if one.direction == "state":
        said = one.payload
        head += f"{said.get('phase')} {said.get('problem') or ''} {said.get('reason') or ''}"
        say(" ".join(head.split()))
        return
    head += f"{_short(one.topic, width)[1:-1] if one.topic else '(its organisation is not known yet)'} "
    if one.direction == "invalid":
        head += f"{one.record.data.get('reason')}: "
    say(head + _short(one.payload, max(_SHOWN, width - len(head))))


def _short(value: Any, room: int) -> str:
    text = jsonlib.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text if len(text) <= room else text[: room - 3] + "..."
