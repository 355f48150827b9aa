"""Single messages: where they stand, cancelling them, and why no reply came."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from petalbus.daemon.bus.connection import ServerError
from petalbus.daemon.bus.envelope import Route
from petalbus.daemon.bus.errors import BusError
from petalbus.daemon.bus.keys import GROUP, Keys
from petalbus.daemon.bus.options import BusOptions
from petalbus.daemon.bus.outbox import Outbox
from petalbus.daemon.bus.settle import CANCELLED
from petalbus.schemas.payloads import prepare
from petalbus.schemas.record import Record
from petalbus.schemas.stamps import Clock, new_id
from petalbus.schemas.vocabulary import ReplyKind, Status

_STATES: Final = {
    "q": Status.PENDING,
    "p": Status.PROCESSING,
    "d": Status.DELIVERED,
    "c": Status.COMPLETED,
    "f": Status.FAILED,
    "t": Status.TIMEOUT,
    "x": Status.CANCELLED,
}
KEEP_CONTROL: Final = 1000


@dataclass(frozen=True, slots=True)
class Known:
    """What the id window remembers of a message: state, inbox entry, who may repeat it, and its final reply."""

    state: Status
    entry: str
    priority: str
    recipient: str
    source: str
    reply: str

    @classmethod
    def parse(cls, value: bytes) -> Known:
        """Read the window's text ``<state><entry>|<priority>|<recipient>|<source>[|<reply>]``."""
        parts = value.decode().split("|")
        reply = parts[4] if len(parts) > 4 else ""
        return cls(_STATES[parts[0][:1]], parts[0][1:], parts[1], parts[2], parts[3], reply)

    @property
    def claim(self) -> tuple[str, str, str]:
        """Who may use the id again."""
        return self.priority, self.recipient, self.source


class Messages:
    """Looks after single messages for one client."""

    def __init__(self, keys: Keys, outbox: Outbox, options: BusOptions, *, app: str, clock: Clock) -> None:
        self._keys = keys
        self._outbox = outbox
        self._options = options
        self._app = app
        self._clock = clock

    async def known(self, message_id: str) -> Known | None:
        """What the bus remembers of a message, or None when it does not know the id (any more)."""
        value = await self._outbox.ask("HGET", self._keys.ids, message_id)
        value = value or await self._outbox.ask("HGET", self._keys.ids_before, message_id)
        return Known.parse(value) if value else None

    async def status(self, message_id: str) -> Status:
        """Where a message stands; ``unknown`` when the bus never saw it or has forgotten it."""
        known = await self.known(message_id)
        if known is None:
            return Status.UNKNOWN
        if known.state is not Status.PENDING or not known.recipient:
            return known.state
        stream = self._keys.inbox(known.recipient, int(known.priority))
        if await self._delivered(stream, known.entry):
            return Status.DELIVERED
        rows = await self._outbox.ask("XRANGE", stream, known.entry, known.entry)
        if rows and Record.from_fields(rows[0][1]).expired(self._clock.now_ns(), self._clock.boot_id):
            return Status.TIMEOUT  # it waits for a consumer that will only find it too late
        return Status.PENDING

    async def cancel(self, message_id: str) -> bool:
        """Cancel a message, or ask its consumer to; False when it is settled or unknown."""
        known = await self.known(message_id)
        if known is None or known.state.final or not known.recipient:
            return known is not None and known.state is Status.CANCELLED
        replies = self._keys.replies(known.source)
        route = Route(replies, "cancelled", self._app, clock=self._clock, recipient=known.source)
        text = {
            "status": "error",
            "success": False,
            "error_code": "CANCELLED",
            "message": "cancelled before it was read",
        }
        fields = self._reply_fields(route, message_id, prepare("cancelled", text))
        inbox = self._keys.inbox(known.recipient, int(known.priority))
        outcome = CANCELLED.decode() + known.entry + f"|{known.priority}|{known.recipient}|{known.source}"
        keys = [inbox, self._keys.ids, replies, self._keys.control(known.recipient)]
        head: list[bytes | str | int] = [
            GROUP,
            known.entry,
            message_id,
            outcome,
            KEEP_CONTROL,
            self._options.keep_replies,
        ]
        answer = await self._outbox.run("cancel", keys, [*head, *fields])
        if answer == b"gone":
            # ours from a first attempt whose answer was lost, or settled meanwhile
            return await self.status(message_id) is Status.CANCELLED
        return True

    async def why_no_reply(self, recipient: str, message_id: str, timeout: float) -> str:
        """A sentence for a request that timed out: what is known of the message and of its recipient."""
        text = f"no reply from {recipient!r} within {timeout:g} s"
        try:
            status = await self.status(message_id)
            presence = await self._outbox.ask("HGET", self._keys.status(recipient), "status")
        except (BusError, ServerError) as error:
            return f"{text}; the bus cannot be asked why ({error})"
        if presence is None:
            return f"{text}: no application of that name has ever been on this bus (message {message_id}: {status})"
        return f"{text} (message {message_id}: {status}; {recipient}: last reported {presence.decode()})"

    async def say_goodbye(self) -> None:
        """Show the application as offline, unless another process of it still beats."""
        flat = await self._outbox.call("HGETALL", self._keys.beats)
        prefix = f"{self._app}|".encode()
        left = [int(count) for field, count in zip(flat[::2], flat[1::2], strict=True) if field.startswith(prefix)]
        if all(count < 0 for count in left):  # those stopped as well, and left work for a successor
            await self._outbox.call("HSET", self._keys.status(self._app), "status", "offline")

    async def _delivered(self, stream: str, entry: str) -> bool:
        try:
            groups = await self._outbox.ask("XINFO", "GROUPS", stream)
        except ServerError:
            return False  # the stream is gone, or was never made
        for row in groups:
            info = dict(zip(row[::2], row[1::2], strict=True))
            if info[b"name"] == GROUP.encode():
                return _number(entry) <= _number(info[b"last-delivered-id"].decode())
        return False

    def _reply_fields(self, route: Route, message_id: str, body: bytes) -> list[bytes]:
        reply = {
            "id": new_id(),
            "type": route.type,
            "source": self._app,
            "recipient": route.recipient,
            "data": body,
            "reply_to": message_id,
            "kind": ReplyKind.CANCELLED,
            "time": time.time_ns(),
            "mono": self._clock.now_ns(),
        }
        return Record.checked(reply).to_fields()


def _number(entry: str) -> tuple[int, int]:
    ms, _, n = entry.partition("-")
    return int(ms), int(n)
