"""What a way to the broker is: the interface that both ways have, so that switching is one setting.

broker -> Transport -> Receiver.received, which returns once the message is stored -> the broker hears that we have it
Egress -> Transport.submit -> broker; the future ends when the broker has it
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from petalbus.schemas.stamps import boot_clock_ns, new_id


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message as the broker brought it."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False
    duplicate: bool = False
    """The broker says that it may have brought it before."""
    properties: Mapping[str, str] = field(default_factory=dict)
    """User properties of MQTT 5, as far as they are text."""
    expiry: float | None = None
    """Seconds after its arrival at which nobody wants it any more, where the broker says that."""
    link_s: float | None = None
    """Seconds for which the link had brought all that the broker had for us, when this came; None where that is not
    known. What was sent since then was held by nobody."""
    arrived_ns: int = field(default_factory=boot_clock_ns)
    """When it came, by the boot clock: it may be stored much later."""
    id: str = field(default_factory=new_id)
    """Of this arrival: storing it again, where nobody knows whether it was stored, makes no second record."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message for the broker. ``id`` is its record's: it travels along, so that who gets it twice can tell."""

    id: str
    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False
    expiry: float | None = None
    """Seconds after which nobody needs it any more."""
    about: str | None = None
    """The command that it answers: only answers to one command, and messages of none, need their order on a topic."""


class Phase(StrEnum):
    """How far a link is."""

    OFF = "off"
    WAITING = "waiting"
    """For the next attempt, or for something that must be known first."""
    CONNECTING = "connecting"
    CONNECTED = "connected"


@dataclass(frozen=True, slots=True)
class LinkState:
    """One moment of a link. ``problem`` is a stable word for programs, ``reason`` a sentence that says what to do."""

    phase: Phase = Phase.OFF
    problem: str | None = None
    reason: str = ""
    code: int | None = None
    """The broker's last reason code, or the HTTP status."""

    @property
    def connected(self) -> bool:
        """Whether messages go both ways now."""
        return self.phase is Phase.CONNECTED


@dataclass(frozen=True, slots=True)
class Identity:
    """Who we are to the broker. ``device`` is the segment of the topics; ``client_id`` None: made of ``device``."""

    organization: str | None = None
    device: str | None = None
    client_id: str | None = None


class LinkLost(Exception):
    """The connection ended before the broker had confirmed: the message may or may not have arrived."""


class NotNow(LinkLost):
    """The broker did not take the message this time, and may another time; the connection goes on.

    ``code`` is its reason code; ``patient``: it says nothing against the message, however often it comes.
    """

    def __init__(self, text: str, *, code: int, patient: bool) -> None:
        super().__init__(text)
        self.code = code
        self.patient = patient


class PublishRefused(Exception):
    """The broker will not have this message, now or later. ``code`` is its reason code or HTTP status.

    ``keep``: it becomes a dead letter, for somebody to look at.
    """

    def __init__(self, text: str, *, code: int | None = None, keep: bool = True) -> None:
        super().__init__(text)
        self.code = code
        self.keep = keep


class Receiver(Protocol):
    """Who takes what comes."""

    async def received(self, message: Incoming) -> None:
        """Store a message; it may be acknowledged when this has returned.

        Records lie in the order in which the calls began; several may be under way. Raises BusError when it could not
        be stored: then it must not be acknowledged, and may be handed over again.
        """

    def link_changed(self, state: LinkState) -> None:
        """The link's state is another one. ``connected`` is told when the filters are in place, too."""


class Transport(Protocol):
    """A way to the broker."""

    name: str
    state: LinkState

    async def run(self, receiver: Receiver) -> None:
        """Connect, and connect again, until cancelled. Raises only for what no further attempt can mend."""

    def want(self, filters: Mapping[str, int], identity: Identity) -> None:
        """Which topic filters (with their quality of service) are wanted, by whom. Followed at once, or when connected.

        New filters come before old ones go. A changed ``client_id`` means a new connection.
        """

    async def room(self) -> None:
        """Wait until one more message may be submitted (connected, window not full)."""

    def submit(self, message: Outgoing) -> asyncio.Future[int]:
        """Send a message after those submitted before; never waits. The future: the broker's reason code (below 128).

        It raises LinkLost (send it again once connected), NotNow (after a pause) or PublishRefused (never again).
        """

    def describe(self) -> dict[str, Any]:
        """State and counters, for statistics: at least ``window``, ``in_flight``, ``round_trip_ms``, ``reconnects``."""
