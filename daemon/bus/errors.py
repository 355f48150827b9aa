"""What can go wrong on the bus.

BusError
├── BusUnavailable        the server cannot be reached (or answers with an error) within the time allowed
│   └── OutcomeUnknown    the connection broke after sending: stored or not, nobody can know
├── ServerRefused         the server is there and cannot serve us: too old, replica, wrong password
├── BusFull               the memory ceiling is reached; nothing was stored
├── QueueFull             the recipient's inbox is at its limit; nothing was stored
├── RateLimited           the source sends more telemetry than it may; nothing was stored
├── IdConflict            the message id belongs to another message already
├── NotOpen               the client was not started yet, or is closed; nothing was sent
├── NoSuchDeadLetter      there is no dead letter of that id (any more)
├── RequestTimeout        no reply within the time allowed
├── RequestCancelled      the request was cancelled before it had a result
├── ReplyError            the reply is of kind ``error``
└── HandlerError          raise it in a handler to answer with an error of your own

schemas.RecordInvalid (a ValueError) tells which field of a record breaks the wire contract.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from petalbus.schemas.record import Record


class BusError(Exception):
    """Base of every error of the bus. ``code`` is stable across versions."""

    code = "bus_error"


class BusUnavailable(BusError):
    """The server cannot be reached within the time allowed."""

    code = "bus_unavailable"


class OutcomeUnknown(BusUnavailable):
    """The connection broke between sending and the answer."""

    code = "outcome_unknown"


class ServerRefused(BusError):
    """The server is there but cannot carry the bus."""

    code = "server_refused"


class BusFull(BusError):
    """The server's memory ceiling is reached; the record was refused, not stored."""

    code = "bus_full"


class QueueFull(BusError):
    """The recipient's inbox is at its limit; the record was refused, not stored."""

    code = "queue_full"


class RateLimited(BusError):
    """The source's telemetry allowance is used up; the record was refused, not stored."""

    code = "rate_limited"


class IdConflict(BusError):
    """The id was used before by another source, for another recipient, or at another priority."""

    code = "id_conflict"


class NotOpen(BusError, AttributeError):
    """The client was not started yet, or is closed; nothing was sent."""

    code = "not_open"


class NoSuchDeadLetter(BusError):
    """There is no dead letter of that id (any more)."""

    code = "no_such_dead_letter"


class RequestTimeout(BusError, TimeoutError):
    """No reply came in time. The message may still be handled: ask ``bus.status(id)``."""

    code = "request_timeout"

    def __init__(self, message: str, *, message_id: str) -> None:
        self.message_id = message_id
        super().__init__(message)


class RequestCancelled(BusError):
    """The request was cancelled; ``record`` is the reply that says so."""

    code = "request_cancelled"

    def __init__(self, record: Record) -> None:
        self.record = record
        super().__init__(f"request {record.reply_to} was cancelled")


class ReplyError(BusError):
    """The reply is an error. ``record`` is the reply; ``error_code`` and ``detail`` are read from its payload."""

    code = "reply_error"

    def __init__(self, record: Record) -> None:
        self.record = record
        payload: Any = record.data
        self.detail: dict[str, Any] = payload if isinstance(payload, dict) else {"message": str(payload)}
        self.error_code = str(self.detail.get("error_code", "ERROR"))
        super().__init__(f"{record.source} answered {self.error_code}: {self.detail.get('message', '')}")


class HandlerError(BusError):
    """Raised by a handler: answer with this error. ``retry`` asks for another attempt first (``rerun`` only).

    ``dead``: the record also becomes a dead letter, for somebody to look at.
    """

    code = "handler_error"

    def __init__(
        self,
        message: str,
        *,
        error_code: str = "HANDLER_ERROR",
        data: dict[str, Any] | None = None,
        retry: bool = False,
        dead: bool = False,
    ) -> None:
        self.error_code = error_code
        self.data = data or {}
        self.retry = retry
        self.dead = dead
        super().__init__(message)
