"""`petalbus mqtt publish` and `command`: to the broker, and to petals as the cloud would."""

from __future__ import annotations

import json as jsonlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from petalbus.daemon.cli.common import Data, Json, client, parse_json, run, say, say_json
from petalbus.daemon.cli.exits import BadUsage, Exit, Refused
from petalbus.daemon.cli.mqtt.flow import Flow
from petalbus.daemon.cli.mqtt.state import read_state

_NOBODY: Final = 16
"""The broker's reason code for a message that nobody subscribes to."""


def publish(
    topic: Annotated[
        str, typer.Argument(metavar="TOPIC", help="Such as fleet/alerts; with --suffix such as telemetry.")
    ],
    payload: Annotated[
        str, typer.Argument(metavar="JSON", help="The message; - reads it from standard input, @FILE a file.")
    ],
    suffix: Annotated[bool, typer.Option("--suffix", help="TOPIC is below the device's own topic.")] = False,
    text: Annotated[bool, typer.Option("--text", help="The message is text, sent as it is.")] = False,
    qos: Annotated[int, typer.Option("--qos", min=0, max=1, help="Quality of service.")] = 1,
    retain: Annotated[bool, typer.Option("--retain", help="The broker keeps it for later subscribers.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the broker has it; prints its reason code.")] = False,
    timeout: Annotated[float, typer.Option("--timeout", metavar="SECONDS", min=0.1, help="How long to wait.")] = 10.0,
    data: Data = None,
    json: Json = False,
) -> None:
    """Publish a message; it is stored first, and leaves when there is a connection."""
    if wait and qos == 0:
        raise BadUsage("publish: the broker acknowledges nothing that has --qos 0; leave --wait or --qos out")
    value = payload if text else parse_json(payload)
    message = {("suffix" if suffix else "topic"): topic, "payload": value, "qos": qos, "retain": retain}
    told = run(_publish(data, message, timeout=timeout if wait else None))
    if json:
        say_json(told)
    elif wait:
        nobody = ": nobody subscribes to it" if told["reason_code"] == _NOBODY else ""
        say(f"the broker has it (reason code {told['reason_code']}{nobody})")
    else:
        say(f"stored as {told['id']}")


async def _publish(data: Path | None, message: dict[str, Any], *, timeout: float | None) -> dict[str, Any]:
    from petalbus.handlers.mqtt import words
    from petalbus.petals.proxies.mqtt.confirmed import NotConfirmed, confirmed
    from petalbus.schemas.stamps import new_id

    async with client(data) as bus:
        if "suffix" in message and (organization := (await read_state(bus)).get("organization")):
            message["organization"] = organization
        if timeout is None:
            app = words.APP if message["qos"] else words.TELEMETRY
            return {"id": (await bus.send(app, words.PUBLISH, message)).id}
        name = new_id()
        try:
            return {"id": name, "reason_code": await confirmed(bus, message, timeout=timeout, message_id=name)}
        except NotConfirmed as error:
            raise Refused(str(error), code=error.code, exit_code=Exit.TIMEOUT) from None


def command(
    name: Annotated[str, typer.Argument(metavar="COMMAND", help="Such as echo/say or get_status.")],
    body: Annotated[str, typer.Argument(metavar="[JSON]", help="The command's data.", show_default=False)] = "{}",
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.1, help="How long to wait for the response.")
    ] = 10.0,
    message_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="messageId; the same again is not run again.")
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Ask for no response.")] = False,
    data: Data = None,
    json: Json = False,
) -> None:
    """Give a command as if it had come from the broker, and print what is answered. No connection is needed."""
    value = parse_json(body)
    answer = run(_command(data, name, value, timeout=None if no_wait else timeout, message_id=message_id, json=json))
    if answer is None:
        return
    if answer.get("success") is False or answer.get("status") == "error":
        text = str(answer.get("error") or answer.get("message") or "an error without a text")
        raise Refused(text, code=str(answer.get("error_code") or "command_failed").lower())


async def _command(
    data: Path | None, name: str, body: Any, *, timeout: float | None, message_id: str | None, json: bool
) -> dict[str, Any] | None:
    from petalbus.handlers.mqtt import words
    from petalbus.handlers.mqtt.ingress import Ingress
    from petalbus.handlers.mqtt.options import MqttOptions
    from petalbus.handlers.mqtt.transport import Incoming
    from petalbus.schemas.stamps import new_id

    waits = timeout is not None
    asked = {"command": name, "messageId": message_id or f"cli-{new_id()}", "data": body, "timestamp": words.stamp()}
    raw = jsonlib.dumps({**asked, "waitResponse": waits, "waitAck": waits}).encode()
    async with client(data) as bus:
        link = await read_state(bus)
        topic = link.get("command_topic")
        if not topic:
            text = "it is not known who this device is to the broker, so no command can be addressed to it"
            raise Refused(f"{text}: `petalbus mqtt status`", code="no_identity")
        flow = Flow(bus)
        await flow.open()
        ingress = Ingress(bus, MqttOptions(), respond=_told_here, for_us=lambda _topic: True)
        await ingress.received(Incoming(topic, raw))
        if ingress.invalid_messages:
            raise Refused("the command is not taken; `petalbus mqtt invalid` says why", code="invalid_command")
        if ingress.duplicates:
            raise Refused(
                f"a command with the id {asked['messageId']} has been there already", code="duplicate_command"
            )
        if timeout is None:
            _tell({"messageId": asked["messageId"], "phase": "stored"}, json=json)
            return None
        return await _response(flow, link, asked["messageId"], timeout, json=json)


async def _response(
    flow: Flow, link: Mapping[str, str], message_id: str, timeout: float, *, json: bool
) -> dict[str, Any]:
    """Print what is said about the command, up to its response, which is returned. Raises Refused."""
    until = time.monotonic() + timeout
    while (left := until - time.monotonic()) > 0:
        for one in await flow.read(within=left):
            said = one.payload
            if one.direction != "out" or not isinstance(said, dict) or str(said.get("messageId")) != message_id:
                continue
            _tell(said, json=json)
            if said.get("phase") == "result" or one.topic == link.get("response_topic"):
                return said
    text = f"no response within {timeout:g} s; the command may still be carried out"
    raise Refused(text, code="no_response", exit_code=Exit.TIMEOUT)


def _tell(said: dict[str, Any], *, json: bool) -> None:
    if json:
        say_json(said)
    else:
        rest = {
            name: value for name, value in said.items() if name not in ("messageId", "phase", "deviceId", "timestamp")
        }
        say(f"{said.get('phase', 'result')}: {jsonlib.dumps(rest, ensure_ascii=False)}")


async def _told_here(device: str, message_id: str, data: dict[str, Any], *, name: str | None = None) -> None:
    """Its sender sits here, and is told in another way."""
