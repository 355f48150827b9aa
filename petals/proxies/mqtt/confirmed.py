"""Publishing with the broker's own receipt: stored first, as always, then its answer is waited for."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from petalbus.daemon.bus.errors import BusError, ReplyError, RequestCancelled
from petalbus.handlers.mqtt import words
from petalbus.petals.proxies.errors import ProxyError, ProxyTimeout
from petalbus.schemas.stamps import new_id
from petalbus.schemas.vocabulary import Status

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus

STORED_S: Final = 7 * 86_400.0
"""Seconds for which a message goes on waiting for the broker when nobody waits for its receipt any more."""
_LOOK_S: Final = 1.0


class PublishRefused(ProxyError):
    """The broker, or a limit of it that is kept here, refuses the message: it will not be sent again.

    ``reason_code``: the broker's (128 and above) or the client program's HTTP status; None where it never came there.
    ``error_code``: a stable word. ``message_id``: of the dead letter, where there is one.
    """

    code = "publish_refused"

    def __init__(self, text: str, *, error_code: str, reason_code: int | None, message_id: str) -> None:
        super().__init__(text)
        self.error_code = error_code
        self.reason_code = reason_code
        self.message_id = message_id


class NotConfirmed(ProxyTimeout):
    """The broker has not confirmed it in time: publish again with ``id=error.message_id`` to go on waiting.

    ``stored``: whether the message is stored, and will be sent; False where the bus did not confirm that either.
    """

    code = "not_confirmed"

    def __init__(self, text: str, *, message_id: str, stored: bool) -> None:
        super().__init__(text)
        self.message_id = message_id
        self.stored = stored


async def confirmed(bus: Bus, data: dict[str, Any], *, timeout: float, message_id: str | None) -> int:
    """Store a message with quality of service 1 and wait ``timeout`` seconds for the broker's reason code.

    Raises PublishRefused, NotConfirmed, and BusError where it could not be stored.
    """
    name = message_id or new_id()
    try:
        async with asyncio.timeout(timeout):
            reply = await bus.request(words.APP, words.PUBLISH, data, timeout=STORED_S, id=name)
    except ReplyError as error:
        detail = error.detail
        text = str(detail.get("message") or error)
        reason = detail.get("reason_code")
        raise PublishRefused(text, error_code=error.error_code, reason_code=reason, message_id=name) from None
    except RequestCancelled:
        text = "it was cancelled before the broker had it"
        raise PublishRefused(text, error_code="CANCELLED", reason_code=None, message_id=name) from None
    except TimeoutError:
        stored = await _is_stored(bus, name)
        rest = "it is stored, and will be sent" if stored else "and the bus has not confirmed that it is stored"
        text = f"the broker has not confirmed message {name} within {timeout:g} s; {rest}"
        raise NotConfirmed(text, message_id=name, stored=stored) from None
    code: int = reply.data.get("reason_code", 0)
    return code


async def _is_stored(bus: Bus, message_id: str) -> bool:
    with suppress(BusError, TimeoutError):
        async with asyncio.timeout(_LOOK_S):
            return await bus.status(message_id) is not Status.UNKNOWN
    return False
