"""The four calls that the client program answers, and what their answers mean."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import orjson

from petalbus.handlers.mqtt.client.http import Answer, HttpClient, NoAnswer
from petalbus.handlers.mqtt.transport import LinkLost, Outgoing, PublishRefused

if TYPE_CHECKING:
    from petalbus.handlers.mqtt.options import ClientOptions

_SECRET: Final = re.compile(r"(secret=)[^&\"\s]+")
_SHOWN: Final = 300
_OF_THE_MOMENT: Final = frozenset((401, 404, 405, 407, 408, 425, 429))
"""Answers that speak of the moment or of the program that answers, not of the message: nothing is given up for them."""


class NotDone(Exception):
    """The client program answered that it did not do it. ``status``: of HTTP; 200 came with ``success: false``."""

    def __init__(self, text: str, *, status: int) -> None:
        super().__init__(text)
        self.status = status


class ClientApi:
    """Speaks with the client program. All raise NoAnswer where no answer came."""

    def __init__(self, options: ClientOptions) -> None:
        self.http = HttpClient(options.host, options.port)
        self._options = options
        self.callback_url: str | None = None
        """What is registered with every filter: with the secret in it where there is one."""
        if options.enable_callbacks:
            self.callback_url = options.callback_url
            if options.secret is not None:
                mark = "&" if "?" in options.callback_url else "?"
                self.callback_url += f"{mark}secret={quote(options.secret, safe='')}"

    async def healthy(self) -> float:
        """Ask whether it is well; seconds that the answer took. Raises NotDone when it is not."""
        began = time.monotonic()
        answer = await self.http.ask("GET", "/health", timeout=self._options.probe_timeout)
        if answer.status != 200:
            text = f"the client program says that it is not well: GET /health -> {_shown(answer)}"
            raise NotDone(text, status=answer.status)
        return time.monotonic() - began

    async def subscribe(self, topic: str) -> None:
        """Have what fits a filter brought to us. Raises NotDone."""
        body = orjson.dumps({"topic": topic, "callbackUrl": self.callback_url})
        _done(await self._post("/subscribe", body, self._options.subscribe_timeout), "POST /subscribe")

    async def unsubscribe(self, topic: str) -> None:
        """End that. Raises NotDone."""
        body = orjson.dumps({"topic": topic})
        _done(await self._post("/unsubscribe", body, self._options.subscribe_timeout), "POST /unsubscribe")

    async def publish(self, message: Outgoing, device: str | None) -> None:
        """Have a message published. Raises LinkLost or PublishRefused; NotDone when it was not done this time."""
        body = publication(message, device, self.callback_url)
        try:
            answer = await self._post("/publish", body, self._options.request_timeout)
        except NoAnswer as error:
            raise LinkLost(str(error)) from None
        if 400 <= answer.status < 500 and answer.status not in _OF_THE_MOMENT:
            raise PublishRefused(f"the client program refuses it: {_shown(answer)}", code=answer.status)
        _done(answer, "POST /publish")

    async def _post(self, path: str, body: bytes, timeout: float) -> Answer:
        return await self.http.ask("POST", path, body, timeout=timeout)


def publication(message: Outgoing, device: str | None, callback_url: str | None) -> bytes:
    """The body of POST /publish: JSON as JSON, an object with ``deviceId``, anything else as text.

    Raises PublishRefused for bytes that are neither.
    """
    payload: Any
    try:
        value = orjson.loads(message.payload)
    except orjson.JSONDecodeError:
        try:
            payload = message.payload.decode()
        except UnicodeDecodeError:
            raise PublishRefused("the client program takes JSON and text, and this payload is neither") from None
    else:
        adds = isinstance(value, dict) and device is not None and "deviceId" not in value
        # what need not be changed goes out as it was written
        payload = {**value, "deviceId": device} if adds else orjson.Fragment(message.payload)
    return orjson.dumps(
        {"topic": message.topic, "payload": payload, "qos": message.qos, "callbackUrl": callback_url},
    )


def _done(answer: Answer, call: str) -> None:
    if 200 <= answer.status < 300:
        try:
            told = orjson.loads(answer.body)
        except orjson.JSONDecodeError:
            told = None
        # some versions leave out success, but an error is always named
        if isinstance(told, dict) and (told.get("success") is True or not told.keys() & {"success", "error"}):
            return
    raise NotDone(f"the client program did not do it: {call} -> {_shown(answer)}", status=answer.status)


def _shown(answer: Answer) -> str:
    text = _SECRET.sub(r"\1***", answer.body[:_SHOWN].decode(errors="replace").strip())
    return f"{answer.status} {text}" if text else str(answer.status)
