"""One message on its way out: read from its record, ranked, and given its topic."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import total_ordering
from typing import TYPE_CHECKING, Any

from petalbus.handlers.mqtt.transport import Identity, Outgoing
from petalbus.handlers.mqtt.words import ACK, base_topic
from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.payloads import encode_json
from petalbus.schemas.stamps import BOOT_ID, boot_clock_ns
from petalbus.schemas.vocabulary import Priority

if TYPE_CHECKING:
    from petalbus.schemas.record import Record


def encoded(payload: Any) -> bytes:
    """The bytes of a message: JSON; a text as it is. Raises RecordInvalid."""
    return payload.encode() if isinstance(payload, str) else encode_json(payload, under="payload")


def _place(record: Record, number: int) -> int:
    """Its place in the stream, as a number; ``number`` where it came from none."""
    head, _, tail = (record.stream_id or "").partition("-")
    return (int(head) << 32) + int(tail) if head.isdigit() and tail.isdigit() else number


@total_ordering
@dataclass(slots=True, eq=False)
class Item:
    """A message. ``number`` grows with its place in the stream; ``about``: the command that it answers."""

    id: str
    number: int
    payload: bytes
    topic: str | None
    suffix: str | None
    organization: str | None
    qos: int
    retain: bool
    priority: Priority
    stored_ns: int
    deadline_ns: int | None = None
    about: str | None = None
    answers: str | None = None
    """As ``about``, of the final response only: not of a refusal of another message under the same messageId."""
    newest: int = 0
    """After a longer time offline: the number of the newest message about its command."""
    put_off: int = 0
    """How often the broker did not take it just then."""
    sent_before: int = 0
    """How many others the broker had taken when it first did not take this one."""
    tried: bool = False
    """It has left before."""
    again_at: float = 0.0
    """When it may leave again (time.monotonic())."""
    flying: bool = False
    gone: bool = False
    done: asyncio.Future[dict[str, Any]] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @classmethod
    def of(cls, record: Record, number: int, *, response: str) -> Item:
        """Read a record ``mqtt.publish``. Raises RecordInvalid where it is none."""
        data = record.data
        if not isinstance(data, dict) or "payload" not in data:
            raise RecordInvalid("data", "has no payload", limit="an object with topic or suffix, and payload")
        topic, suffix = data.get("topic"), data.get("suffix")
        if not isinstance(topic if topic is not None else suffix, str):
            raise RecordInvalid("topic", "is missing", limit="topic (text), or suffix below the device's own topic")
        qos = data.get("qos", 1)
        if qos not in (0, 1) or isinstance(qos, bool):
            raise RecordInvalid("qos", f"is {qos!r}", limit="0 or 1")
        payload = data["payload"]
        said = payload if isinstance(payload, dict) else {}
        message_id = said.get("messageId")
        end = (suffix or topic or "").rpartition("/")[2]
        about = str(message_id) if message_id is not None and end in (response, ACK) else None
        same_boot = record.mono is not None and record.boot_id == BOOT_ID
        return cls(
            id=record.id,
            number=_place(record, number),
            payload=encoded(payload),
            topic=topic,
            suffix=suffix,
            organization=data.get("organization"),
            qos=qos,
            retain=bool(data.get("retain", False)),
            priority=record.priority,
            stored_ns=record.mono if record.mono is not None and same_boot else boot_clock_ns(),
            deadline_ns=record.deadline if same_boot else None,
            about=about,
            answers=about if end == response and not data.get("aside") else None,
        )

    @property
    def rank(self) -> tuple[int, int, int, int]:
        """What leaves first: smaller is earlier. Telemetry waits for what must arrive."""
        return (-int(self.priority), -self.qos, -self.newest, self.number)

    @property
    def waited(self) -> float:
        """Seconds since it was stored."""
        return (boot_clock_ns() - self.stored_ns) / 1e9

    @property
    def where(self) -> str:
        """Its place, whoever we are: what a newer message of the same place takes over."""
        return self.topic if self.topic is not None else f"\0{self.organization}\0{self.suffix}"

    def __lt__(self, other: Item) -> bool:
        return self.number < other.number

    def left(self) -> float | None:
        """Seconds until its deadline; None where it has none."""
        return None if self.deadline_ns is None else (self.deadline_ns - boot_clock_ns()) / 1e9

    def expired(self) -> bool:
        """Whether nobody waits for it any more."""
        left = self.left()
        return left is not None and left <= 0

    def topic_for(self, identity: Identity) -> str | None:
        """Its topic: below the organisation for which it was stored. None while that is not known."""
        organization = self.organization or identity.organization
        if not organization or not identity.device:
            return None
        return f"{base_topic(organization, identity.device)}/{self.suffix}"

    @property
    def is_ack(self) -> bool:
        """Whether it says that a petal has a command."""
        return (self.suffix or self.topic or "").rpartition("/")[2] == ACK

    def outgoing(self, topic: str, *, retain: bool) -> Outgoing:
        """What the transport gets."""
        left = self.left()
        return Outgoing(self.id, topic, self.payload, qos=self.qos, retain=retain, expiry=left, about=self.about)
