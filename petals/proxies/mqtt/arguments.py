"""The several ways in which petals call the same MQTT methods, brought into one."""

from __future__ import annotations

from typing import Any, NamedTuple


class Publication(NamedTuple):
    """What shall be published. ``topic`` None: where commands for the web client go."""

    topic: str | None
    payload: Any
    qos: int


class Response(NamedTuple):
    """The answer to a command. ``topic`` None: the device's response topic."""

    topic: str | None
    message_id: str
    data: dict[str, Any]


def publication(given: tuple[Any, ...], named: dict[str, Any]) -> Publication:
    """``(payload, qos=1)`` or ``(topic, payload, qos=1)``, by position or name. Raises TypeError that says why."""
    words = (
        ["topic", "payload", "qos"] if "topic" in named or (given and isinstance(given[0], str)) else ["payload", "qos"]
    )
    values = _bound("publish_message", [word for word in words if word not in named], given, named, words)
    if "payload" not in values:
        raise TypeError("publish_message needs a payload: publish_message(payload) or publish_message(topic, payload)")
    topic = values.get("topic")
    if topic is not None and not isinstance(topic, str):
        raise TypeError(f"publish_message: topic is {type(topic).__name__}; it must be text")
    return Publication(topic, values["payload"], values.get("qos", 1))


def response(given: tuple[Any, ...], named: dict[str, Any]) -> Response:
    """``(message_id, response_data)`` or ``(response_topic, message_id, response_data)``. Raises TypeError."""
    names = {"topic": "response_topic", "data": "response_data"}
    named = {names.get(name, name): value for name, value in named.items()}
    words = ["response_topic", "message_id", "response_data"]
    if len(given) + len(named) < 3:
        words = words[1:]
    values = _bound("send_command_response", [word for word in words if word not in named], given, named, words)
    missing = [word for word in ("message_id", "response_data") if word not in values]
    if missing:
        raise TypeError(f"send_command_response needs {' and '.join(missing)}")
    if not isinstance(values["response_data"], dict):
        raise TypeError(f"send_command_response: response_data is {type(values['response_data']).__name__}, not a dict")
    return Response(values.get("response_topic"), str(values["message_id"]), values["response_data"])


def _bound(
    call: str, free: list[str], given: tuple[Any, ...], named: dict[str, Any], words: list[str]
) -> dict[str, Any]:
    unknown = sorted(set(named) - set(words))
    if unknown:
        raise TypeError(f"{call} has no argument {unknown[0]!r}; it takes {', '.join(words)}")
    if len(given) > len(free):
        raise TypeError(f"{call} takes {', '.join(words)}; {len(given) + len(named)} arguments were given")
    return {**dict(zip(free, given, strict=False)), **named}
