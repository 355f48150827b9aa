"""What the commands share: their options, the client of the bus, JSON on the command line, and how they print."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from petalbus.daemon.cli.exits import BadUsage

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus

T = TypeVar("T")

TOOL_APP: Final = "cli"
"""The app under which all tools of the command line are known on the bus."""

_NEAR: Final = 12

Data = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="Data directory of the bus; the default one when not given."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line; errors too.")]
App = Annotated[str, typer.Argument(metavar="APP", help="An application, such as vehicle.")]
PriorityName = Annotated[
    str | None,
    typer.Option(
        "--priority", metavar="LEVEL", help="low, normal, high or critical (or 1 to 4); else what the record calls for."
    ),
]
MessageId = Annotated[
    str | None, typer.Option("--id", metavar="ID", help="Message id; sending it again has no second effect.")
]
Payload = Annotated[
    str, typer.Argument(metavar="JSON", help="The payload; - reads it from standard input, @FILE a file.")
]


@asynccontextmanager
async def client(data: Path | None) -> AsyncIterator[Bus]:
    """A client of the running bus, not shown among the applications. Raises NoRunningBus and BusUnavailable."""
    from petalbus.daemon.bus.options import BusOptions
    from petalbus.daemon.connect import connect

    async with connect(app=TOOL_APP, data=data, options=BusOptions(presence=False)) as bus:
        yield bus


def run(main: Coroutine[Any, Any, T], *, show_log: bool = False) -> T:
    """Run a command's coroutine. The library's log is silent, unless the command stays: what fails is an error here."""
    import asyncio

    logger = logging.getLogger("petalbus")
    handler: logging.Handler = logging.StreamHandler() if show_log else logging.NullHandler()
    handler.setFormatter(logging.Formatter("petalbus: %(message)s"))
    logger.addHandler(handler)
    try:
        return asyncio.run(main)
    finally:
        logger.removeHandler(handler)


def parse_json(text: str) -> Any:
    """The JSON value in an argument (``-``: on standard input, ``@FILE``: in a file).

    Raises BadUsage that says where it is broken.
    """
    place = "JSON"
    if text == "-":
        place, text = "JSON on standard input", sys.stdin.read()
    elif text.startswith("@"):
        place = f"JSON in {text[1:]}"
        try:
            text = Path(text[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadUsage(f"{place}: cannot be read: {error}") from None
    try:
        return json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        near = text[max(0, error.pos - _NEAR) : error.pos + _NEAR]
        where = f"line {error.lineno} column {error.colno}"
        what = error.msg[0].lower() + error.msg[1:]
        raise BadUsage(f"{place}: {what} at {where}" + (f", near {near!r}" if near else "")) from None
    except (ValueError, RecursionError) as error:
        raise BadUsage(f"{place}: {error}") from None


def priority_of(text: str | None) -> int | None:
    """A priority level by name or number; None when none is given: the bus then chooses. Raises BadUsage."""
    if text is None:
        return None
    from petalbus.schemas.vocabulary import Priority

    try:
        return Priority.parse(text)
    except ValueError as error:
        raise BadUsage(str(error)) from None


def say(text: str) -> None:
    """Print a line."""
    sys.stdout.write(text + "\n")


def say_json(value: Any) -> None:
    """Print one JSON object on a line of its own."""
    say(json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=str))


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """Print a table; ``empty`` when there are no rows. A column name that begins with ``>`` is right-aligned."""
    if not rows:
        say(empty)
        return
    show(grid(columns, rows))


def show(renderable: Any) -> None:
    """Print something that rich can render."""
    from rich.console import Console  # costs 0.1 s

    # A pipe gets whole lines: there is no width there to cut them to.
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 1000, highlight=False).print(renderable)


def grid(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Any:
    """A table to print, as rich has it."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left", no_wrap=True)
    for row in rows:
        made.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    return made


def duration(seconds: float | None) -> str:
    """A time span for people."""
    if seconds is None:
        return "?"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for limit, unit, name in ((60, 1, "s"), (3600, 60, "min"), (86_400, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds / 86_400:.1f} d"


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
