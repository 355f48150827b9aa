"""`petalbus tail`: what goes over the bus, newest records of one stream or of all."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import typer

from petalbus.daemon.cli.common import Data, Json, client, run, say, say_json
from petalbus.daemon.cli.exits import Refused

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.daemon.cli.showing import Shown
    from petalbus.daemon.cli.streams import Stream
    from petalbus.schemas.compact import CompactForm, Declared

_DEFAULT_COUNT: Final = 40
_LOOK_BACK: Final = 2_000
"""Entries of each stream among which the newest of every type are picked, so that a rare one is not drowned."""

_PAGE: Final = 200
_MAX_BYTES: Final = 8 << 20
_BLOCK_MS: Final = 1_000
_RESCAN_READS: Final = 5
_ANSI: Final = {"red": "31", "green": "32", "yellow": "33", "cyan": "36"}

_Row = tuple[bytes, list[bytes]]


class _Raw(NamedTuple):
    stream: Stream
    entry: bytes
    fields: list[bytes]


def tail(
    stream: Annotated[
        str | None,
        typer.Argument(metavar="[STREAM]", help="mavlink.rx, inbox:APP, replies:APP, dead:APP; all when not given."),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")] = False,
    count: Annotated[
        int, typer.Option("--count", "-n", min=0, max=100_000, help="So many of the newest records.")
    ] = _DEFAULT_COUNT,
    data: Data = None,
    json: Json = False,
) -> None:
    """Print the newest records in the order of their time; of all streams, some of every type."""

    async def work() -> None:
        async with client(data) as bus:
            viewer = _Viewer(bus, stream, as_json=json)
            await viewer.open()
            await viewer.newest(count)
            if follow:
                await viewer.follow()

    try:
        run(work(), show_log=follow)
    except KeyboardInterrupt:
        if not follow:
            raise


class _Viewer:
    """Reads streams without a consumer group: looking leaves no trace on the bus."""

    def __init__(self, bus: Bus, wanted: str | None, *, as_json: bool) -> None:
        self._bus = bus
        self._wanted = wanted
        self._as_json = as_json
        self._streams: list[Stream] = []
        self._seen: dict[str, bytes] = {}
        self._forms: dict[str, Declared] = {}
        self._width = shutil.get_terminal_size((160, 24)).columns if sys.stdout.isatty() else 400
        self._colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    async def open(self) -> None:
        """Find the streams. Raises Refused when the one that was named does not exist."""
        from petalbus.daemon.cli.streams import find, parse

        there = await find(self._bus)
        if self._wanted is None:
            self._streams = there
            return
        self._streams = parse(self._bus.keys, self._wanted)
        if not {stream.key for stream in self._streams} & {stream.key for stream in there}:
            labels = sorted({_family(stream) for stream in there})
            names = f"there are {', '.join(labels)}" if labels else "there is none yet"
            raise Refused(f"nothing has ever been in {self._wanted!r} on this bus; {names}", code="no_such_stream")

    async def newest(self, count: int) -> None:
        """Print the newest records."""
        rows: list[_Raw] = []
        left_out: Counter[str] = Counter()
        for stream in self._streams:
            found = await self._last(stream, _LOOK_BACK if self._wanted is None else count)
            rows += found
        picked = _fair(rows, count, left_out) if self._wanted is None else _last_of(rows, count)
        await self._show(picked)
        if left_out and not self._as_json:
            names = ", ".join(f"{number} of {name}" for name, number in left_out.most_common())
            sys.stderr.write(f"petalbus: not shown: {names}; `petalbus tail STREAM` shows one in full\n")

    async def follow(self) -> None:
        """Print what comes, for ever."""
        from petalbus.daemon.bus.errors import OutcomeUnknown
        from petalbus.daemon.cli.streams import find, named

        reads = 0
        while True:
            sys.stdout.flush()
            keys = [stream.key for stream in self._streams]
            if not keys or (reads := reads + 1) % _RESCAN_READS == 0:
                self._streams = await find(self._bus) if self._wanted is None else self._streams
                keys = [stream.key for stream in self._streams]
            after = [self._seen.get(key, b"0-0") for key in keys]
            try:
                words = ("XREAD", "COUNT", _PAGE, "BLOCK", _BLOCK_MS, "STREAMS")
                answer = await self._bus.call(*words, *keys, *after) if keys else None
            except OutcomeUnknown:  # the connection broke; reading again does no harm
                continue
            rows = []
            for key, entries in answer or ():
                stream = named(self._bus.keys, key.decode())
                rows += [_Raw(stream, entry, fields) for entry, fields in entries]
                self._seen[stream.key] = entries[-1][0]
            await self._show(rows)

    async def _last(self, stream: Stream, most: int) -> list[_Raw]:
        """The newest entries, oldest first, within the bounds of number and size."""
        rows: list[_Row] = []
        end, size = b"+", 0
        while len(rows) < max(most, 1) and size < _MAX_BYTES:
            number = min(_PAGE, max(most, 1) - len(rows))
            page = await self._bus.call("XREVRANGE", stream.key, end, "-", "COUNT", number)
            if not page:
                break
            rows += page
            size += sum(len(field) for _, fields in page for field in fields)
            end = b"(" + page[-1][0]
        if rows:
            self._seen[stream.key] = rows[0][0]
        return [_Raw(stream, entry, fields) for entry, fields in reversed(rows[:most])]

    async def _show(self, rows: Sequence[_Raw]) -> None:
        from petalbus.daemon.cli.showing import entry_object, in_order, line, read_entry
        from petalbus.schemas.stamps import boot_clock_ns

        entries: list[Shown] = []
        for row in rows:
            form = await self._form(row)
            entries.append(read_entry(row.stream, row.entry, row.fields, form))
        now = boot_clock_ns()
        for one in in_order(entries):
            if self._as_json:
                say_json(entry_object(one))
            else:
                say(line(one, now=now, width=self._width, paint=self._paint))

    async def _form(self, row: _Raw) -> CompactForm | None:
        from petalbus.schemas.compact import CompactForm, Declared, is_compact
        from petalbus.schemas.errors import RecordInvalid

        if row.stream.kind != "topic" or not is_compact(row.fields):
            return None
        declared = self._forms.setdefault(row.stream.key, Declared())
        if declared.outdated(row.entry.decode(), row.fields):
            flat = await self._bus.call("HGETALL", self._bus.keys.form(row.stream.of))
            try:
                declared.form = CompactForm.from_hash(dict(zip(flat[::2], flat[1::2], strict=True)))
            except RecordInvalid:
                declared.form = None  # the entry is shown as what it is: no record
        return declared.form

    def _paint(self, colour: str, text: str) -> str:
        code = _ANSI.get(colour)
        return f"\x1b[{code}m{text}\x1b[0m" if self._colours and code is not None else text


def _fair(rows: Sequence[_Raw], count: int, left_out: Counter[str]) -> list[_Raw]:
    """The newest ``count``, shared out between all types of all streams: the rare ones whole, the frequent ones cut."""
    groups: dict[tuple[str, bytes], list[_Raw]] = {}
    for row in rows:
        groups.setdefault((row.stream.label, _type_of(row.fields)), []).append(row)
    picked: list[_Raw] = []
    by_size: list[tuple[tuple[str, bytes], list[_Raw]]] = sorted(groups.items(), key=lambda item: len(item[1]))
    for number, ((label, _), members) in enumerate(by_size):
        room = count - len(picked)
        share = min(len(members), room, max(1, room // (len(by_size) - number)))
        picked += members[len(members) - share :]
        if share < len(members):
            left_out[label] += len(members) - share
    return picked


def _last_of(rows: Sequence[_Raw], count: int) -> list[_Raw]:
    """The newest of several streams: by the server's own order, which is theirs too."""

    def order(row: _Raw) -> tuple[int, int]:
        ms, _, number = row.entry.partition(b"-")
        return int(ms), int(number)

    return sorted(rows, key=order)[max(0, len(rows) - count) :]


def _type_of(fields: Sequence[bytes]) -> bytes:
    for wanted in (b"k", b"type"):
        for name, value in zip(fields[::2], fields[1::2], strict=False):
            if name == wanted:
                return value
    return b""


def _family(stream: Stream) -> str:
    return f"{stream.kind}:{stream.of}" if stream.kind == "inbox" else stream.label
