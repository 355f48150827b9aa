"""The words that the MQTT link, the command dispatch and the petals' MQTT proxy share.

broker -> link -> topic mqtt.rx (mqtt.message) -> dispatch -> inbox of each petal (mqtt.command)
petal -> inbox of app "mqtt" (mqtt.publish) -> link -> broker
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from petalbus.daemon.bus.keys import Keys

APP: Final = "mqtt"
"""The app of the link: its inbox is the outbox of everybody who publishes."""

TOPIC: Final = "mqtt.rx"
"""The bus topic of what came in. Data of a record: ``topic``, ``payload`` (JSON), ``qos``, ``retain``."""

MESSAGE: Final = "mqtt.message"
COMMAND: Final = "mqtt.command"
"""A command offered to one petal: data as of the message that brought it."""

PUBLISH: Final = "mqtt.publish"
"""To be published. Data: ``topic``, or ``suffix`` below the device's own topic; ``payload``, ``qos``, ``retain``."""

COMMAND_EDGE: Final = "command/edge"
COMMAND_PLAIN: Final = "command"
COMMAND_WEB: Final = "command/web"
RESPONSE: Final = "response"
ACK: Final = "ack"

MAX_PAYLOAD_BYTES: Final = 128 * 1024
"""AWS IoT Core takes no larger message."""


def base_topic(organization: str, device: str) -> str:
    """``org/<organization>/device/<device>``."""
    return f"org/{organization}/device/{device}"


def is_command_topic(topic: str) -> bool:
    """True for the two topics on which commands arrive, whatever organisation and device they name."""
    parts = topic.split("/", 4)
    return len(parts) == 5 and parts[0] == "org" and parts[2] == "device" and parts[4] in (COMMAND_EDGE, COMMAND_PLAIN)


def handlers_key(keys: Keys) -> str:
    """The hash of apps that take commands: app -> 1."""
    return f"{keys.prefix}mqtt:handlers"


def filters_key(keys: Keys) -> str:
    """The hash of topic filters that apps here want: ``filter_field`` -> quality of service."""
    return f"{keys.prefix}mqtt:filters"


def filter_field(app: str, topic: str) -> str:
    """An app's wish for a filter. Each app has its own: one that leaves must not take the topic from another."""
    return f"{app}|{topic}"


def link_key(keys: Keys) -> str:
    """The hash that the link keeps: ``connected`` (0 or 1), ``reason``."""
    return f"{keys.prefix}mqtt:link"


def matches(pattern: str, topic: str) -> bool:
    """Whether a topic fits a filter: ``+`` and ``*`` stand for one level, a last ``#`` for all that follow."""
    wanted, given = pattern.split("/"), topic.split("/")
    for position, word in enumerate(wanted):
        if word == "#" and position == len(wanted) - 1:
            return True
        if position >= len(given) or (word not in ("+", "*") and word != given[position]):
            return False
    return len(wanted) == len(given)


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
