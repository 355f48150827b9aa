"""`petalbus mav status`, `cmd` and `watch`."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Mapping
from typing import Annotated, Any, Final

import typer

from petalbus.daemon.cli.common import Data, Json, client, run, say, say_json
from petalbus.daemon.cli.exits import BadUsage, Refused
from petalbus.daemon.cli.mav.asking import System, ask

_ABOVE = ("GLOBAL_POSITION_INT", "relative_alt")
_SECONDS: Final = 30.0
_SET_MESSAGE_INTERVAL: Final = 511


def status(system: System = None, data: Data = None, json: Json = False) -> None:
    """Show the vehicles: mode, battery, position, and how good their link is."""
    told = run(ask(data, "mavlink.status", {}, system=system))
    if json:
        say_json(told)
        return
    vehicles = [one for one in told["vehicles"] if system in (None, one["system"])]
    if not vehicles:
        raise Refused(f"no vehicle is heard on {told['link']['endpoint']}", code="vehicle_not_connected")
    for vehicle in vehicles:
        for line in _lines(vehicle, alone=len(told["vehicles"]) == 1):
            say(line)
    say(_link_line(told))


def cmd(
    command: Annotated[
        str, typer.Argument(metavar="COMMAND", help="arm, takeoff, goto, hold, mode, return, land, disarm, ...")
    ],
    parameters: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME=VALUE]...", help="such as altitude=10", show_default=False)
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", metavar="SECONDS", min=0.1)] = _SECONDS,
    system: System = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Give the vehicle a command, and show its acknowledgements."""
    given = dict(_parameter(text) for text in parameters or ())

    def show(told: dict[str, Any]) -> None:
        if json:
            say_json(told)
        else:
            percent = f" {told['progress']} %" if "progress" in told else ""
            say(f"{told['stage']}: {told['result'].removeprefix('MAV_RESULT_').lower()}{percent}")

    payload = {"command": command, "parameters": given}
    result = run(ask(data, "command", payload, system=system, timeout=timeout, on_progress=show))
    show(result)
    if result["status"] != "success":
        raise Refused(f"the vehicle refused {result['stage']}: {result['result']}", code="vehicle_refused")


def rate(
    message: Annotated[str, typer.Argument(metavar="MESSAGE", help="such as ATTITUDE")],
    hertz: Annotated[float, typer.Argument(metavar="HZ", help="0 turns it off", min=0, max=1000)],
    system: System = None,
    data: Data = None,
) -> None:
    """Tell the vehicle how often to send a message."""
    from petalbus.handlers.mavlink.wire.dialect import load_dialect

    msgid = load_dialect().ids.get(message)
    if msgid is None:
        raise BadUsage(f"there is no message {message!r}")
    wanted = {"command": _SET_MESSAGE_INTERVAL, "params": [msgid, 1e6 / hertz if hertz else -1]}
    told = run(ask(data, "mavlink.command", wanted, system=system, timeout=_SECONDS))
    if told["result_code"] != 0:
        raise Refused(f"the vehicle refused: {told['result']}", code="vehicle_refused")
    say(f"{message}: {f'{hertz:g} times a second' if hertz else 'off'}")


def watch(
    messages: Annotated[list[str], typer.Argument(metavar="MESSAGE...", help="such as ATTITUDE")],
    count: Annotated[int | None, typer.Option("--count", "-n", min=1, help="End after so many.")] = None,
    system: System = None,
    data: Data = None,
) -> None:
    """Print the vehicles' messages as they come, as JSON lines."""

    async def work() -> None:
        from petalbus.handlers.mavlink.decode import decode
        from petalbus.schemas.stamps import new_id

        left = count
        async with client(data) as bus:
            name = f"watch-{new_id()}"
            try:
                async with bus.subscribe("mavlink.rx", name=name, messages=messages) as records:
                    async for record in records:
                        message = decode(record)
                        if system not in (None, message["header"]["system"]):
                            continue
                        say_json(message)
                        left = None if left is None else left - 1
                        if left == 0:
                            break
            finally:
                await bus.call("XGROUP", "DESTROY", bus.keys.topic("mavlink.rx"), f"{bus.app}.{name}")

    run(work(), show_log=True)


def _parameter(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise BadUsage(f"{text!r}: write NAME=VALUE, such as altitude=10")
    try:
        return name, jsonlib.loads(value)
    except ValueError:
        return name, value


def _lines(vehicle: Mapping[str, Any], *, alone: bool) -> list[str]:
    messages: Mapping[str, Mapping[str, Any]] = vehicle["messages"]
    kind = f"{vehicle['type'].removeprefix('MAV_TYPE_').lower()}, {vehicle['autopilot'].removeprefix('MAV_AUTOPILOT_')}"
    heard = f"heard {vehicle['heard_s']:.1f} s ago" if vehicle["connected"] else "NOT CONNECTED"
    primary = ", the primary one" if vehicle["primary"] and not alone else ""
    lines = [f"vehicle   {vehicle['system']} ({kind}), {heard}{primary}"]
    state = vehicle["landed_state"].removeprefix("MAV_LANDED_STATE_").replace("_", " ").lower()
    lines.append(f"state     {'ARMED' if vehicle['armed'] else 'disarmed'}, mode {vehicle['mode']}, {state}")
    if power := messages.get("SYS_STATUS"):
        lines.append(f"battery   {power['battery_remaining']} %, {power['voltage_battery'] / 1000:.1f} V")
    if place := messages.get("GLOBAL_POSITION_INT"):
        where = f"{place['lat'] / 1e7:.7f}, {place['lon'] / 1e7:.7f}"
        lines.append(f"position  {where}, {place['relative_alt'] / 1000:.1f} m above the take-off place")
    if gps := messages.get("GPS_RAW_INT"):
        lines.append(f"gps       fix {gps['fix_type']}, {gps['satellites_visible']} satellites")
    return lines


def _link_line(told: Mapping[str, Any]) -> str:
    link, received = told["link"], told["link"]["received"]
    return (
        f"link      {link['endpoint']}: {received['frames']} frames, {received['lost']} lost, "
        f"{received['crc_errors']} damaged; {told['published']} recorded, {told['lost']} not"
    )
