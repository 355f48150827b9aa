"""What the client program brings: taken in order, and answered with success only when it is stored.

Without a framework; ``callback_routes`` gives it addresses.
"""

from __future__ import annotations

import asyncio
import hmac
import inspect
import logging
import re
import time
from collections.abc import AsyncIterable, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Any, Final

import orjson

from petalbus.daemon.bus.errors import BusError
from petalbus.handlers.mqtt.transport import Incoming
from petalbus.handlers.mqtt.words import stamp

if TYPE_CHECKING:
    from petalbus.handlers.mqtt.options import ClientOptions
    from petalbus.handlers.mqtt.transport import Receiver

log = logging.getLogger(__name__)

MAX_BODY: Final = 512 * 1024
"""Bytes of one callback: a message of 128 KiB, however it is escaped, and what is around it."""

WAITING: Final = 256
"""Callbacks that wait for those before them. More are asked to come again."""

PATIENCE: Final = 5.0
"""Seconds that one may wait for the others and for being stored."""

_TOPIC: Final = re.compile(rb'"topic"\s*:\s*"((?:[^"\\]|\\.){1,1000})"')
_MAX_TOPIC: Final = 65535
_REFUSALS_TOLD: Final = 10.0
_RETRY: Final = {"Retry-After": "1"}


@dataclass(frozen=True, slots=True)
class Reply:
    """What a callback is answered."""

    status: int
    body: dict[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)


class _Invalid(Exception):
    """It is no message."""


class Callbacks:
    """Takes callbacks for a ``receiver``, which the transport sets while it runs.

    Where the receiver has ``invalid(topic, raw, reason)`` (a coroutine function), it gets what is no message, too.
    ``subscriptions`` and ``handlers`` are counted for the pages of the older program. ``known``: whether it is known
    which device this is; until then everything is to come again.
    """

    def __init__(self, options: ClientOptions, *, max_body: int = MAX_BODY, patience: float = PATIENCE) -> None:
        self.receiver: Receiver | None = None
        self.subscriptions: Callable[[], int] = lambda: 0
        self.handlers: Callable[[], int] = lambda: 0
        self.known: Callable[[], bool] = lambda: True
        self._secret = options.secret.encode() if options.secret is not None else None
        self._max_body = max_body
        self._patience = patience
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._failed = 0
        self._told_refusal = -_REFUSALS_TOLD
        self.stored = self.invalid = self.refused = self.put_off = 0

    def statistics(self) -> dict[str, int]:
        """Callbacks stored, invalid, refused (403), and put off (503)."""
        return {"stored": self.stored, "invalid": self.invalid, "refused": self.refused, "put_off": self.put_off}

    def health(self) -> dict[str, Any]:
        """Whether what is brought would be taken."""
        status = "healthy" if self.receiver is not None else "unavailable"
        return {"status": status, "timestamp": stamp(), "subscriptions": self.subscriptions()}

    def stats(self) -> dict[str, Any]:
        """Counts of subscriptions and handlers."""
        return {"subscriptions": self.subscriptions(), "handlers": self.handlers()}

    async def take(self, pieces: AsyncIterable[bytes], *, peer: str | None, secret: str | None) -> Reply:
        """Take one callback: its body, the address that it comes from, the secret that it knows."""
        if not self._may(peer, secret):
            return self._refusal(peer)
        raw = bytearray()
        async for piece in pieces:
            raw += piece
            if len(raw) > self._max_body:
                text = f"the body has more than {self._max_body} bytes"
                return await self._keep(bytes(raw[: self._max_body]), text, status=413)
        try:
            message = _read(bytes(raw))
        except _Invalid as error:
            return await self._keep(bytes(raw), str(error), status=400)
        try:
            reply = await self._in_turn(lambda receiver: receiver.received(message))
        except _Invalid as error:
            return await self._keep(bytes(raw), str(error), status=400)
        self.stored += reply is None
        return reply or Reply(200, {"status": "success"})

    async def _keep(self, raw: bytes, reason: str, *, status: int) -> Reply:
        found = _TOPIC.search(raw)
        topic = found[1].decode(errors="replace") if found is not None else ""

        async def hand_on(receiver: Receiver) -> None:
            keep = getattr(receiver, "invalid", None)
            if keep is None:
                log.warning("a callback that is no MQTT message is not kept: %s", reason)
            elif inspect.isawaitable(kept := keep(topic, raw, reason)):
                await kept

        try:
            reply = await self._in_turn(hand_on)
        except _Invalid as refusal:
            reply = self._later("not_stored", str(refusal))
        self.invalid += reply is None
        error = "body_too_large" if status == 413 else "invalid_message"
        return reply or Reply(status, {"status": "error", "error": error, "detail": reason})

    async def _in_turn(self, work: Callable[[Receiver], Awaitable[None]]) -> Reply | None:
        """Do it after those that came before; None when it is done, else what to answer.

        Raises _Invalid where another attempt would end alike.
        """
        if self._waiting >= WAITING:
            return self._later("too_many_waiting", f"{self._waiting} callbacks wait to be stored")
        failed = self._failed
        self._waiting += 1
        try:
            async with asyncio.timeout(self._patience), self._turn:
                receiver = self.receiver
                if receiver is None:
                    return self._later("link_not_running", "the MQTT link does not run now, or goes another way")
                if not self.known():
                    return self._later("no_identity", "which device this is is not known yet")
                if failed != self._failed:  # else it would overtake the one that is to come again
                    return self._later("not_stored", "one that came before could not be stored")
                try:
                    await work(receiver)
                except (BusError, OSError, asyncio.CancelledError):
                    self._failed += 1
                    raise
        except BusError as error:
            return self._later("not_stored", f"it is not stored: {error}")
        except TimeoutError:
            return self._later("not_stored", f"it could not be stored within {self._patience:g} s")
        except OSError as error:
            return self._later("not_stored", f"it is not stored: {error!r}")
        except Exception as error:
            # a fault of ours, or of the message's: it must not come again for ever
            log.exception("a callback could not be handed on")
            raise _Invalid(f"it cannot be a record: {error!r}") from error
        finally:
            self._waiting -= 1
        return None

    def _later(self, error: str, detail: str) -> Reply:
        self.put_off += 1
        return Reply(503, {"status": "error", "error": error, "detail": f"{detail}; send it again"}, _RETRY)

    def _may(self, peer: str | None, secret: str | None) -> bool:
        if self._secret is not None:
            return secret is not None and hmac.compare_digest(secret.encode(), self._secret)
        return is_loopback_address(peer)

    def _refusal(self, peer: str | None) -> Reply:
        self.refused += 1
        now = time.monotonic()
        if now - self._told_refusal >= _REFUSALS_TOLD:
            self._told_refusal = now
            log.warning("an MQTT callback from %s is refused (%d so far)", peer, self.refused)
        if self._secret is not None:
            text = "the secret (X-PetalBus-Secret, or secret in the address) is missing or wrong"
        else:
            text = "only this computer may bring messages; set mqtt_callback_secret to let others"
        return Reply(403, {"status": "error", "error": "callback_refused", "detail": text})


def is_loopback_address(peer: str | None) -> bool:
    """Whether a peer's address is of this computer; False for none."""
    try:
        address = ip_address((peer or "").partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback


def _read(raw: bytes) -> Incoming:
    try:
        told = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise _Invalid(f"the body is no JSON: {error}") from None
    if not isinstance(told, dict):
        raise _Invalid(f"the body is {type(told).__name__}; it must be an object with topic and payload")
    topic = told.get("topic")
    if not isinstance(topic, str) or not topic:
        raise _Invalid("topic is missing, or no text")
    if any(sign in topic for sign in "+#\0") or len(topic.encode()) > _MAX_TOPIC:
        raise _Invalid("topic is not one that a message can have: + and #, or too long")
    if "payload" not in told:
        raise _Invalid("payload is missing")
    payload = told["payload"]
    qos = told.get("qos")
    try:
        # what was no JSON to the client program is text here
        raw_payload = payload.encode() if isinstance(payload, str) else orjson.dumps(payload)
    except TypeError as error:  # it writes fewer levels than it reads
        raise _Invalid(f"payload is nested too deeply: {error}") from None
    return Incoming(
        topic=topic,
        payload=raw_payload,
        qos=qos if qos in (0, 1, 2) and not isinstance(qos, bool) else 1,
    )
