"""`petalbus mqtt status`: how the link is, who we are to the broker, what waits, and counters."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from petalbus.daemon.cli.common import Data, Json, client, duration, run, say, say_json
from petalbus.daemon.cli.exits import Exit, Refused

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus

_ASK_S: Final = 2.0
_LOOK_S: Final = 0.2
_DAEMON: Final = "petalbus"


def status(
    wait: Annotated[
        float | None,
        typer.Option("--wait", metavar="SECONDS", min=0.1, help="Wait until it is connected; exit code 4 if not."),
    ] = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Show the link to the broker: connected or why not, what waits, what went through."""
    told = run(_waited(data, wait))
    if json:
        say_json(told)
    else:
        for line in _lines(told):
            say(line)
    if wait is not None and not told["connected"]:
        text = f"not connected within {wait:g} s: {told['reason'] or told['phase']}"
        raise Refused(text, code="not_connected", exit_code=Exit.TIMEOUT)


async def _waited(data: Path | None, wait: float | None) -> dict[str, Any]:
    import asyncio  # only where it is waited

    async with client(data) as bus:
        until = time.monotonic() + (wait or 0.0)
        while wait is not None and time.monotonic() < until:
            if (await read_state(bus)).get("connected") == "1":
                break
            await asyncio.sleep(_LOOK_S)
        return await gather(bus)


async def read_state(bus: Bus) -> dict[str, str]:
    """What the link last said of itself; nothing where none has ever run."""
    from petalbus.handlers.mqtt import words
    from petalbus.petals.proxies.mqtt.link import read_state as read

    return read(await bus.ask("HGETALL", words.link_key(bus.keys)))


async def gather(bus: Bus) -> dict[str, Any]:
    """Everything: from the daemon, or as the link last said it where the daemon does not answer. Raises Refused."""
    from petalbus.handlers.mqtt import words

    part = await _asked(bus)
    last = await read_state(bus)
    if part is not None and "statistics" in part:
        told = _from_daemon(part["statistics"], last)
    elif last:
        told = _from_hash(last)
        if part is not None:
            told |= {
                "connected": False,
                "phase": "off",
                "problem": f"part-{part['state']}",
                "reason": part["last_error"],
            }
    else:
        raise Refused("no MQTT link has ever run on this bus; is it older, or a bus without one?", code="no_mqtt_link")
    counts = [await bus.ask("XLEN", bus.keys.dead(app)) for app in (words.APP, words.TELEMETRY)]
    invalid = await bus.ask("XLEN", bus.keys.topic(words.INVALID))
    return {**told, **await _outbox_of(bus), "dead_letters": sum(counts), "invalid_kept": invalid}


async def _outbox_of(bus: Bus) -> dict[str, Any]:
    """How much waits to leave, and for how long (seconds): what the link has taken, and what it has not taken yet."""
    from petalbus.daemon.cli.looking import backlog
    from petalbus.daemon.cli.streams import parse
    from petalbus.handlers.mqtt import words

    depth, ages = 0, []
    for stream in [one for app in (words.APP, words.TELEMETRY) for one in parse(bus.keys, f"inbox:{app}")]:
        if not await bus.ask("EXISTS", stream.key):
            continue
        state = await backlog(bus, stream)
        depth += state.waiting + state.pending
        if state.oldest is not None:
            ages.append(state.oldest)
    return {"outbox": depth, "oldest_s": max(ages, default=None)}


async def _asked(bus: Bus) -> dict[str, Any] | None:
    """The part of the daemon; None where nobody answers."""
    from petalbus.daemon.bus.errors import ReplyError, RequestCancelled, RequestTimeout

    try:
        reply = await bus.request(_DAEMON, "status_request", {"fields": ["parts"]}, timeout=_ASK_S)
    except (ReplyError, RequestCancelled, RequestTimeout):
        return None
    part: dict[str, Any] | None = reply.data["parts"].get("mqtt")
    return part


def _from_daemon(told: Mapping[str, Any], last: Mapping[str, str]) -> dict[str, Any]:
    link, out = told["link"], told["out"]
    return {
        "told_by": "daemon",
        **{name: told[name] for name in ("connected", "phase", "transport", "problem", "reason", "code", "since_s")},
        "round_trip_ms": link.get("round_trip_ms"),
        "organization": told["organization"],
        "device": told["device"],
        "command_topic": last.get("command_topic") or None,
        "filters": told["filters"],
        "wishes_refused": told["wishes"]["refused"],
        "window": link.get("window"),
        "in_flight": link.get("in_flight"),
        "without_organization": out["without_organization"],
        "reconnects": link.get("reconnects"),
        "in": told["in"],
        "out": out,
        "commands": told["commands"],
        "link": link,
    }


def _from_hash(last: Mapping[str, str]) -> dict[str, Any]:
    from petalbus.petals.proxies.mqtt.link import SILENT, is_silent
    from petalbus.schemas.stamps import BOOT_ID, boot_clock_ns

    silent = is_silent(last)
    same = last.get("boot_id") == BOOT_ID
    age = (boot_clock_ns() - int(last["told_ns"])) / 1e9 if same and last.get("told_ns", "").isdigit() else None
    since = (boot_clock_ns() - int(last["since_ns"])) / 1e9 if same and last.get("since_ns", "").isdigit() else None
    return {
        "told_by": "link",
        "told_s_ago": age,
        "connected": last.get("connected") == "1" and not silent,
        "phase": "off" if silent else last.get("phase") or "off",
        "transport": last.get("transport") or None,
        "problem": "no-daemon" if silent else last.get("problem") or None,
        "reason": SILENT if silent else last.get("reason", ""),
        "code": _number(last.get("code")),
        "since_s": since,
        "round_trip_ms": _number(last.get("round_trip_ms")),
        "organization": last.get("organization") or None,
        "device": last.get("device") or None,
        "command_topic": last.get("command_topic") or None,
        "filters": dict.fromkeys(filter(None, last.get("topics", "").split(",")), None),
        "window": _number(last.get("window")),
        "in_flight": _number(last.get("in_flight")),
    }


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return int(value) if value.is_integer() else value


def _lines(told: Mapping[str, Any]) -> list[str]:
    for_how_long = f" for {duration(told['since_s'])}" if told["since_s"] is not None else ""
    through = f" through {told['transport']}" if told["transport"] else ""
    head = "connected" if told["connected"] else "NOT CONNECTED"
    lines = [f"link      {head}{for_how_long}{through}" + ("" if told["connected"] else f", {told['phase']}")]
    if told["told_by"] == "link":
        lines.append(f"          the daemon does not answer; the link said this {duration(told['told_s_ago'])} ago")
    if told["problem"] or told["reason"]:
        code = "" if told["code"] is None else f" (code {told['code']})"
        lines.append(f"problem   {told['problem'] or 'none'}{code}: {told['reason']}")
    lines.append(
        f"identity  organisation {told['organization'] or 'not known'}, device {told['device'] or 'not known'}"
    )
    names = [name if qos is None else f"{name} (QoS {qos})" for name, qos in told["filters"].items()]
    word = "filters" if told["connected"] else "wanted"
    lines += [f"{word if number == 0 else '':<9} {name}" for number, name in enumerate(names or ["none"])]
    lines += [f"refused   {wish!r}: {why}" for wish, why in told.get("wishes_refused", {}).items()]
    trip = "?" if told["round_trip_ms"] is None else f"{told['round_trip_ms']:g} ms"
    window = f"{told['in_flight'] or 0} of {told['window'] if told['window'] is not None else '?'} in flight"
    lines.append(f"traffic   round trip {trip}, {window}, {told.get('reconnects') or 0} reconnects")
    lines.append(_outbox(told))
    if "in" in told:
        lines += _counters(told)
    dead, kept = told["dead_letters"], told["invalid_kept"]
    letters = f"{dead} dead letters" + (" (`petalbus dead list`)" if dead else "")
    lines.append(f"kept      {letters}, {kept} invalid messages" + (" (`petalbus mqtt invalid`)" if kept else ""))
    return lines


def _outbox(told: Mapping[str, Any]) -> str:
    oldest = f", the oldest for {duration(told['oldest_s'])}" if told["oldest_s"] is not None else ""
    without = told.get("without_organization")
    more = f", {without} until the organisation is known" if without else ""
    return f"outbox    {told['outbox'] or 0} wait{oldest}{more}"


def _counters(told: Mapping[str, Any]) -> list[str]:
    came, out, commands = told["in"], told["out"], told["commands"]
    took = "" if commands["command_ms"] is None else f"; the last response after {commands['command_ms']:g} ms"
    lines = [f"in        {came['stored']} stored, {came['duplicates']} duplicates dropped, {came['invalid']} invalid"]
    sent = f"{out['sent']} sent, {out['repeated']} repeated, {out['conflated']} replaced by newer ones"
    lines.append(f"out       {sent}, {out['refused']} refused, {out['expired']} too late")
    offered = (
        f"{commands['offered']} offered, {commands['repeated']} repetitions dropped, {commands['refused']} refused"
    )
    answers = f"{commands['waiting']} wait, {commands['answered_for']} answered for petals{took}"
    return [*lines, f"commands  {offered}, {answers}"]
