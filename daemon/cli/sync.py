"""`petalbus sync`: what waits for the cloud's tables, and what becomes of changes that were refused."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from petalbus.daemon.cli.common import Data, Json, client, duration, run, say, say_json, table
from petalbus.daemon.cli.exits import Refused

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus

_APP: Final = "database"
_WRITE: Final = "database.write"
_SECONDS: Final = 10.0
_FIRST: Final = 4
"""The priority of questions: many writes may wait in the inbox, at the one below."""
_MOST: Final = 10_000
_PAGE: Final = 200

app = typer.Typer(no_args_is_help=True, help="Writes to the cloud's tables: what waits, what was refused.")

Seq = Annotated[str, typer.Argument(metavar="SEQ", help="A parked change, as `sync status` shows it.")]


@app.command()
def status(data: Data = None, json: Json = False) -> None:
    """Show whether the cloud is there, what waits for each table, and what was refused (parked)."""

    async def work() -> dict[str, Any]:
        async with client(data) as bus:
            await _require(bus)
            told = await _ask(bus, "database.status", {})
            return {**told, "waiting": await _waiting(bus, told), "parked": await _parked(bus, told)}

    told = run(work())
    told.pop("local", None)
    if json:
        say_json(told)
        return
    online = {True: "online", False: "offline", None: "not used yet"}[told["online"]]
    say(f"{told['backend']} at {told['where']}: {online}{'; ' + told['problem'] if told['problem'] else ''}")
    say(
        f"last success {_when(told['last_success_at'])}, last error {_when(told['last_error_at'])} {told['last_error']}"
    )
    rows = [(one["table"], one["waiting"], duration(one["oldest_s"])) for one in told["waiting"]]
    table(("TABLE", ">WAITING", ">OLDEST"), rows, empty="nothing waits")
    if told["parked"]:
        parked = [(one["seq"], one["table"], one["key"], one["operation"], one["error"]) for one in told["parked"]]
        table(("PARKED", "TABLE", "KEY", "OPERATION", "WHY"), parked, empty="")


@app.command()
def retry(
    seq: Annotated[str | None, typer.Argument(metavar="SEQ", help="As `sync status` shows it.")] = None,
    all: Annotated[bool, typer.Option("--all", help="All parked changes, the oldest first.")] = False,
    data: Data = None,
    json: Json = False,
) -> None:
    """Try a parked change again, or all of them. What has a later write in the cloud stays as it is."""
    if (seq is None) is not all:
        raise typer.BadParameter("name one parked change, or say --all")
    if seq is not None:
        _act("retry", seq, data, json=json)
        return
    count = run(_retry_all(data))
    if json:
        say_json({"retried": count})
    else:
        say(f"{count} are tried again")


@app.command()
def drop(seq: Seq, data: Data = None, json: Json = False) -> None:
    """Forget a parked change for good."""
    _act("drop", seq, data, json=json)


def _act(what: str, seq: str, data: Data, *, json: bool) -> None:
    async def work() -> None:
        async with client(data) as bus:
            await _require(bus)
            if seq.isdigit():
                await _ask(bus, f"database.{what}", {"seq": int(seq)})
            elif what == "retry":
                await bus.dead.requeue(_APP, seq)
            else:
                await bus.dead.drop(_APP, seq)

    run(work())
    if json:
        say_json({"seq": seq, what: True})
    else:
        say(f"{seq} is tried again" if what == "retry" else f"{seq} is dropped")


async def _retry_all(data: Data) -> int:
    from petalbus.daemon.bus.errors import NoSuchDeadLetter
    from petalbus.schemas.errors import RecordInvalid

    async with client(data) as bus:
        await _require(bus)
        count = int((await _ask(bus, "database.retry", {"all": True}))["retried"])
        entries: list[str] = []
        while letters := await bus.dead.list(_APP, count=_PAGE, after=entries[-1] if entries else None):
            entries += [letter.entry for letter in letters]
        for entry in entries:  # those that were there: what dies again meanwhile is not tried for ever
            try:
                await bus.dead.requeue(_APP, entry)
            except (NoSuchDeadLetter, RecordInvalid):  # settled meanwhile, or no record at all: that stays
                continue
            count += 1
        return count


async def _require(bus: Bus) -> None:
    if not await bus.ask("EXISTS", bus.keys.status(_APP)):
        text = (
            "no tables in the cloud are configured: set cloud_endpoint and access_token_url, and start the daemon anew"
        )
        raise Refused(text, code="no_cloud")


async def _ask(bus: Bus, kind: str, question: dict[str, Any]) -> dict[str, Any]:
    from petalbus.daemon.bus.errors import ReplyError

    try:
        answer: dict[str, Any] = (await bus.request(_APP, kind, question, timeout=_SECONDS, priority=_FIRST)).data
    except ReplyError as error:
        raise Refused(error.detail.get("message", str(error)), code=error.error_code.lower()) from None
    return answer


async def _waiting(bus: Bus, told: dict[str, Any]) -> list[dict[str, Any]]:
    """By table: those of the bus, and those of the local database."""
    from petalbus.daemon.cli.looking import waiting_records
    from petalbus.daemon.cli.streams import find, parse

    there = {stream.key for stream in await find(bus)}
    found: dict[str, dict[str, Any]] = {}
    for stream in parse(bus.keys, f"inbox:{_APP}"):
        for one in await waiting_records(bus, stream, _MOST) if stream.key in there else ():
            record = one.shown.record
            if record is None or record.type == _WRITE:
                name = record.data.get("table", "?") if record is not None and isinstance(record.data, dict) else "?"
                _count(found, name, 1, one.age)
    for one in (told["local"] or {}).get("tables", ()):
        _count(found, one["table"], one["waiting"], one["oldest_s"])
    return [found[name] for name in sorted(found)]


def _count(found: dict[str, dict[str, Any]], name: str, more: int, age: float | None) -> None:
    one = found.setdefault(name, {"table": name, "waiting": 0, "oldest_s": None})
    one["waiting"] += more
    ages = [each for each in (one["oldest_s"], age) if each is not None]
    one["oldest_s"] = max(ages, default=None)


async def _parked(bus: Bus, told: dict[str, Any]) -> list[dict[str, Any]]:
    """Changes of the local database (``seq`` a number), and dead letters (``seq`` their entry)."""
    from petalbus.schemas.errors import RecordInvalid

    shown: list[dict[str, Any]] = []
    for one in (told["local"] or {}).get("parked", ()):
        name, _, key = str(one["key"]).partition("/")
        shown.append({**one, "seq": str(one["seq"]), "table": name, "key": key.replace("/", "=", 1)})
    for letter in await bus.dead.list(_APP, count=1000):
        try:
            body = letter.record.data if isinstance(letter.record.data, dict) else {}
        except RecordInvalid:  # that is why it is dead
            body = {}
        named = body.get("key")
        key = ", ".join(f"{name}={value}" for name, value in named.items()) if isinstance(named, dict) else "?"
        name, operation = str(body.get("table", "?")), str(body.get("operation", "?"))
        shown.append({"seq": letter.entry, "table": name, "key": key, "operation": operation, "error": letter.reason})
    return shown


def _when(at: float | None) -> str:
    return "never" if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"
