"""The message that petals push to the web client."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class MQTTMessage(BaseModel):
    """Shaped like a command. ``timestamp``: RFC 3339, UTC."""

    waitResponse: bool  # noqa: N815  # the names of the wire
    waitAck: bool = False  # noqa: N815  # the same
    messageId: str  # noqa: N815  # the same
    deviceId: str  # noqa: N815  # the same
    command: str
    timestamp: str
    payload: dict[str, Any]
