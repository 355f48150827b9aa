"""The words that the MQTT link, the command dispatch and the petals' MQTT proxy share.

broker -> link -> topic mqtt.rx (mqtt.message) -> dispatch -> inbox of each petal (mqtt.command)
petal -> inbox of app "mqtt", or "mqtt.telemetry" (mqtt.publish) -> link -> broker
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from petalbus.daemon.bus.keys import Keys

APP: Final = "mqtt"
"""The app of the link: its inbox is the outbox of everybody who publishes."""

TELEMETRY: Final = "mqtt.telemetry"
"""The app whose inbox takes what has quality of service 0: while there is no connection the latest of a topic stays."""

COMMANDS: Final = "mqtt.commands"
"""The app that dispatches commands. Its work has an inbox of its own: it must not wait behind what is published."""

TOPIC: Final = "mqtt.rx"
"""The bus topic of what came in. Data of a record: ``topic``, ``payload`` (JSON), ``qos``, ``retain``."""

MESSAGE: Final = "mqtt.message"
COMMAND: Final = "mqtt.command"
"""A command offered to one petal: data as of the message that brought it, and ``place``: its stream id in ``TOPIC``,
which tells which of two commands came first."""

INVALID: Final = "mqtt.invalid"
"""The bus topic of what came in and is not what its topic stands for. Data: ``reason``, ``topic``, ``bytes``, and the
beginning of the message as ``text`` or ``base64``."""

STOPPED: Final = "STOPPED_MEANWHILE"
"""The error code of a command that came before a stop and had not begun when that did."""

STATE: Final = "mqtt.state"
"""The bus topic of the link's states: data as the hash of ``link_key``, in short."""

PUBLISH: Final = "mqtt.publish"
"""To be published. Data: ``topic``, or ``suffix`` below the device's own topic of ``organization`` (as it was known, or
the one that becomes known next); ``payload``, ``qos``, ``retain``."""

LATER: Final = "mqtt.publish_later"
"""As ``PUBLISH``, with a ``suffix`` and no ``organization``: it waits, at priority LOW, until that is known."""

FILTERS: Final = "mqtt.filters"
"""Tells the app ``mqtt.commands`` to look at the hash of wanted filters."""

HTTP: Final = "http"
"""Whose wish a filter is that was subscribed over HTTP: it stays until it is unsubscribed, and is nobody's life."""

COMMAND_EDGE: Final = "command/edge"
COMMAND_PLAIN: Final = "command"
COMMAND_WEB: Final = "command/web"
RESPONSE: Final = "response"
ACK: Final = "ack"
DEBUG: Final = "debug"
TELEMETRY_SUFFIX: Final = "telemetry"

TOLD_S: Final = 5.0
"""Seconds between two times that the link tells its state, at most. Unless it does, nobody knows it any more."""

COMMANDS_AT_ONCE: Final = 16
"""Commands of one petal that run at the same time, those that may not wait not counted."""

URGENT: Final = ("emergency_stop", "emergency_command", "land_immediately")
"""What stops an aircraft must not wait: commands whose last word is one of these (``flight/emergency_stop``)."""

MAX_PAYLOAD_BYTES: Final = 128 * 1024
"""AWS IoT Core takes no larger message."""


def base_topic(organization: str, device: str) -> str:
    """``org/<organization>/device/<device>``."""
    return f"org/{organization}/device/{device}"


def is_command_topic(topic: str) -> bool:
    """True for the two topics on which commands arrive, whatever organisation and device they name."""
    parts = topic.split("/", 4)
    return len(parts) == 5 and parts[0] == "org" and parts[2] == "device" and parts[4] in (COMMAND_EDGE, COMMAND_PLAIN)


def device_of(topic: str) -> str | None:
    """``org/<organization>/device/<device>`` of a topic below it; None for another one."""
    parts = topic.split("/", 4)
    return "/".join(parts[:4]) if len(parts) == 5 and parts[0] == "org" and parts[2] == "device" else None


def handlers_key(keys: Keys) -> str:
    """The hash of apps that take commands: app -> JSON list of their commands, or null: any."""
    return f"{keys.prefix}mqtt:handlers"


def waiting_key(keys: Keys) -> str:
    """The hash of commands whose senders wait for a response: messageId, or a name where that was used before -> what
    is known of them (JSON).
    """
    return f"{keys.prefix}mqtt:waiting"


def filters_key(keys: Keys) -> str:
    """The hash of topic filters that apps here want: ``filter_field`` -> quality of service."""
    return f"{keys.prefix}mqtt:filters"


def filter_field(app: str, topic: str) -> str:
    """An app's wish for a filter. Each app has its own: one that leaves must not take the topic from another."""
    return f"{app}|{topic}"


def organization_key(keys: Keys) -> str:
    """The organisation that was ours the last time that one was known."""
    return f"{keys.prefix}mqtt:organization"


def link_key(keys: Keys) -> str:
    """The hash that the link keeps: ``connected`` (0 or 1), ``reason``, and more.

    It is told anew every ``TOLD_S``; ``told_ns`` is when (boot clock of ``boot_id``).
    """
    return f"{keys.prefix}mqtt:link"


def place_of(data: Any) -> tuple[int, int] | None:
    """Where in the topic a command came, of its offer's data: earlier is smaller. None where that is not known."""
    head, _, tail = str(data.get("place", "") if isinstance(data, dict) else "").partition("-")
    return (int(head), int(tail)) if head.isdecimal() and tail.isdecimal() else None


def matches(pattern: str, topic: str) -> bool:
    """Whether a topic fits a filter: ``+`` and ``*`` stand for one level, a last ``#`` for all that follow."""
    wanted, given = pattern.split("/"), topic.split("/")
    for position, word in enumerate(wanted):
        if word == "#" and position == len(wanted) - 1:
            return True
        if position >= len(given) or (word not in ("+", "*") and word != given[position]):
            return False
    return len(wanted) == len(given)


def refusal(text: str, code: str, **more: Any) -> dict[str, Any]:
    """An error in both shapes that cloud programs read: ``status`` and ``message``, ``success`` and ``error``."""
    return {"status": "error", "success": False, "message": text, "error": text, "error_code": code, **more}


def hash_items(reply: Any) -> Iterator[tuple[bytes, bytes]]:
    """Fields and values of a hash, whichever protocol version brought them."""
    if isinstance(reply, dict):
        return iter(reply.items())
    values = iter(reply or ())
    return zip(values, values, strict=True)


def stamp() -> str:
    """The time now as messages carry it: RFC 3339 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def mirrored(message: dict[str, Any]) -> dict[str, Any]:
    """A command with its body under ``payload`` and under ``data``, whichever of the two it came with."""
    if "payload" in message and "data" not in message:
        return {**message, "data": message["payload"]}
    if "data" in message and "payload" not in message:
        return {**message, "payload": message["data"]}
    return message
