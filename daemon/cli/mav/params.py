"""`petalbus mav params`: the vehicle's parameters, one or all, compared with a file, saved and loaded.

Files are those of ground stations: QGroundControl's (`system component name value type`, with tabs) and ArduPilot's
(`name,value`) are read; QGroundControl's are written, as they keep the type.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import typer

from petalbus.daemon.cli.common import Data, Json, run, say, say_json, table
from petalbus.daemon.cli.exits import BadUsage, Refused
from petalbus.daemon.cli.mav.asking import Bar, System, ask

app = typer.Typer(no_args_is_help=True, help="Read, set, compare, save and load parameters.")

_MOST_S: Final = 300.0
_BULK: Final = {"max_in_flight": 20, "max_retries": 100, "resend_interval": 0.7, "inter_send_delay": 0.0}

Names = Annotated[list[str], typer.Argument(metavar="NAME...", help="Parameters, such as COM_DISARM_LAND.")]
File = Annotated[Path, typer.Argument(metavar="FILE", help="A parameter file.")]
Timeout = Annotated[float, typer.Option("--timeout", metavar="SECONDS", min=0.1, max=_MOST_S)]


class Param(NamedTuple):
    """One parameter as it is shown. ``kind`` is its MAV_PARAM_TYPE, None where a file does not say."""

    name: str
    value: float
    kind: int | None


@app.command("get")
def get(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="All when none is named.")] = None,
    timeout: Timeout = 30.0,
    system: System = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Read parameters."""
    found, refused, _ = _read(data, system, names or [], timeout)
    _show(found, json=json)
    _complain(refused, "read")


@app.command("set")
def set_(
    settings: Annotated[list[str], typer.Argument(metavar="NAME=VALUE...", help="such as COM_DISARM_LAND=2.5")],
    timeout: Timeout = 30.0,
    system: System = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Set parameters, and make sure that the vehicle has them."""
    found, refused = _write(data, system, [_setting(text) for text in settings], timeout)
    _show(found, json=json)
    _complain(refused, "set")


@app.command("save")
def save(file: File, timeout: Timeout = 60.0, system: System = None, data: Data = None) -> None:
    """Write all parameters of the vehicle into a file."""
    found, refused, whose = _read(data, system, [], timeout)
    lines = ["# parameters: system, component, name, value, type (MAV_PARAM_TYPE)"]
    lines += [f"{whose}\t1\t{one.name}\t{_text(one.value)}\t{one.kind}" for one in found.values()]
    try:
        file.write_text("\n".join(lines) + "\n", encoding="ascii")
    except OSError as error:
        raise Refused(f"{file} cannot be written: {error.strerror or error}") from None
    say(f"{len(found)} parameters saved in {file}")
    _complain(refused, "read")


@app.command("load")
def load(
    file: File,
    timeout: Timeout = 120.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be set.")] = False,
    system: System = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Set what a file says differently from the vehicle."""
    wanted = read_file(file)
    differing = _differing(data, system, wanted, timeout)
    if not dry_run and differing:
        found, refused = _write(data, system, [one for one, _ in differing], timeout)
        _show(found, json=json)
        _complain(refused, "set")
    elif not json:
        _show_differences(differing)
    say(f"{len(differing)} of {len(wanted)} parameters {'differ' if dry_run else 'differed'}")


@app.command("diff")
def diff(file: File, timeout: Timeout = 60.0, system: System = None, data: Data = None, json: Json = False) -> None:
    """Compare a file with the vehicle. The exit code is 1 when something differs."""
    differing = _differing(data, system, read_file(file), timeout)
    if json:
        for wanted, now in differing:
            say_json({"name": wanted.name, "file": wanted.value, "vehicle": None if now is None else now.value})
    else:
        _show_differences(differing)
    if differing:
        raise typer.Exit(1)


def read_file(file: Path) -> list[Param]:
    """Read a parameter file. Raises BadUsage with the line that makes no sense."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadUsage(f"{file} cannot be read: {error}") from None
    found = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        parts = text.replace(",", " ").split()
        try:
            name, value, *kind = parts if len(parts) == 2 else parts[2 : 5 if len(parts) == 5 else 2]
            found.append(Param(name, _number(value), int(kind[0]) if kind else None))
        except ValueError:
            raise BadUsage(f"{file} line {number}: {line.strip()[:60]!r} is no parameter") from None
    return found


def _read(
    data: Data, system: System, names: list[str], timeout: float
) -> tuple[dict[str, Param], Mapping[str, Any], int]:
    """What was read, what was refused, and the system id of the vehicle that answered."""
    with Bar("parameters") as show:
        if names:
            payload: dict[str, Any] = {"names": names, "timeout": timeout, **_BULK}
            kind = "mavlink.param.get"
        else:
            payload, kind = {"timeout": timeout}, "mavlink.param.list"
        answer = run(ask(data, kind, payload, system=system, timeout=timeout, on_progress=show))
    return _decoded(answer), answer["refused"], answer["system"]


def _write(
    data: Data, system: System, params: list[Param], timeout: float
) -> tuple[dict[str, Param], Mapping[str, Any]]:
    wanted = [{"name": one.name, "value": one.value, "type": one.kind} for one in params]
    with Bar("setting") as show:
        payload = {"params": wanted, "timeout": timeout, **_BULK}
        answer = run(ask(data, "mavlink.param.set", payload, system=system, timeout=timeout, on_progress=show))
    return _decoded(answer), answer["refused"]


def _differing(data: Data, system: System, wanted: list[Param], timeout: float) -> list[tuple[Param, Param | None]]:
    there, _, _ = _read(data, system, [], timeout)
    return [(one, now) for one in wanted if (now := there.get(one.name)) is None or not _same(one.value, now.value)]


def _same(one: float, other: float) -> bool:
    from struct import pack

    return one == other or pack("<f", one) == pack("<f", other)  # a file's decimals are not the vehicle's bits


def _decoded(answer: Mapping[str, Any]) -> dict[str, Param]:
    from petalbus.handlers.mavlink.params.values import ParamEncoding, decode_value

    encoding = ParamEncoding(answer["encoding"] or ParamEncoding.BYTEWISE)  # without one there are only floats
    return {
        name: Param(name, decode_value(bytes.fromhex(raw), kind, encoding), kind)
        for name, (raw, kind, *_) in sorted(answer["values"].items())
    }


def _show(found: Mapping[str, Param], *, json: bool) -> None:
    if json:
        for one in found.values():
            say_json(one._asdict())
    else:
        for one in found.values():
            say(f"{one.name:<16} {_text(one.value)}")


def _show_differences(differing: list[tuple[Param, Param | None]]) -> None:
    rows = [(one.name, _text(one.value), "-" if now is None else _text(now.value)) for one, now in differing]
    table(("NAME", ">FILE", ">VEHICLE"), rows, empty="no differences")


def _complain(refused: Mapping[str, Mapping[str, Any]], done: str) -> None:
    if refused:
        some = "; ".join(f"{name}: {why['reason']}" for name, why in list(refused.items())[:10])
        more = f"; and {len(refused) - 10} more" if len(refused) > 10 else ""
        raise Refused(f"{len(refused)} parameters were not {done}: {some}{more}", code="params_refused")


def _setting(text: str) -> Param:
    name, separator, value = text.partition("=")
    try:
        number = _number(value)
    except ValueError:
        separator = ""
    if not separator or not name:
        raise BadUsage(f"{text!r}: write NAME=NUMBER")
    return Param(name, number, None)


def _number(text: str) -> float:
    """A whole number stays one: its type is chosen by it where the vehicle tells none."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def _text(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.9g}"
