"""The petal ``echo``: a small one to learn from. Each way into a petal is there once, and says back what it got."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, Field
from starlette.websockets import WebSocket

from petalbus.daemon.bus.handlers import Progress
from petalbus.petals.base import Petal
from petalbus.petals.decorators import http_action, mqtt_action, on, websocket_action
from petalbus.petals.payloads import parse

if TYPE_CHECKING:
    from petalbus.schemas.record import Record

MAX_TEXT: Final = 10_000


class Count(BaseModel):
    """What ``echo.count`` takes: how far, and the pause before each number in seconds."""

    to: int = Field(ge=1, le=1000)
    pause: float = Field(default=0.0, ge=0, le=10)


class EchoPetal(Petal):
    """Everything that a petal needs: a name, a version, and methods that are marked with what they answer to."""

    # The name is the petal's address: records go to the app "echo", HTTP to /petals/echo.
    name = "echo"
    version = "1.0.0"

    def __init__(self) -> None:
        super().__init__()
        self.heard = 0

    # A record of type "echo" in our inbox. What the method returns goes back to the sender, in one step with the
    # acknowledgement: a crash gives both or neither. Saying it twice does no harm, so a successor may run it again
    # (redelivery="rerun"); leave that out where twice would be wrong: "report" is then answered for us.
    @on("echo", redelivery="rerun", concurrency=None)
    async def echo(self, record: Record) -> dict[str, Any]:
        """Say it back."""
        self.heard += 1
        return {"echo": record.data, "heard": self.heard}

    # Long work tells how far it is: every Progress is a reply, the first other thing is the result. `parse` checks the
    # payload; what is wrong is answered with the name of the field, and nothing below it runs.
    @on("echo.count", redelivery="rerun", concurrency=None)
    async def count(self, record: Record) -> AsyncIterator[Any]:
        """Count aloud."""
        wanted = parse(record, Count)
        for number in range(1, wanted.to + 1):
            if wanted.pause:
                await asyncio.sleep(wanted.pause)
            yield Progress({"number": number})
        yield {"counted": wanted.to}

    # GET /petals/echo/say?text=... Parameters, their checks and the documentation come from the annotations.
    @http_action("GET", "/say", summary="Say a text back")
    async def say(self, text: str = "") -> dict[str, Any]:
        """Say a text back."""
        self.heard += 1
        return {"echo": text[:MAX_TEXT], "heard": self.heard}

    # A websocket at /petals/echo/ws. It ends when the other side leaves.
    @websocket_action("/ws")
    async def repeat(self, websocket: WebSocket) -> None:
        """Say every text back."""
        await websocket.accept()
        async for text in websocket.iter_text():
            self.heard += 1
            await websocket.send_text(text)

    # The MQTT command "echo/say". With waitResponse somebody waits for an answer; MQTT may be away, so it is optional.
    @mqtt_action("say")
    async def say_over_mqtt(self, topic: str, message: dict[str, Any]) -> None:
        """Say the payload back."""
        self.heard += 1
        mqtt = self.get_proxy("mqtt")
        if mqtt is not None and message.get("waitResponse", False):
            said = {"status": "success", "echo": message.get("payload"), "topic": topic}
            await mqtt.send_command_response(message_id=message["messageId"], response_data=said)

    def get_optional_proxies(self) -> list[str]:
        """Without MQTT everything else works."""
        return ["mqtt"]
