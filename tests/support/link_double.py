"""The far side of the MQTT link, held in the test's hand: what is submitted stays until the test answers it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from petalbus.handlers.mqtt.transport import Identity, Incoming, LinkState, Outgoing, Phase, Receiver


@dataclass
class Sent:
    """One message that was submitted."""

    message: Outgoing
    done: asyncio.Future[int]

    @property
    def body(self) -> Any:
        """What it says."""
        return orjson.loads(self.message.payload)


@dataclass
class HeldTransport:
    """Connected and disconnected by the test. ``answer`` None: nothing is acknowledged until the test does it."""

    name: str = "held"
    window: int = 10
    answer: int | None = 0
    state: LinkState = field(default_factory=LinkState)
    sent: list[Sent] = field(default_factory=list)
    filters: dict[str, int] = field(default_factory=dict)
    identity: Identity = field(default_factory=Identity)

    def __post_init__(self) -> None:
        self._receiver: Receiver | None = None
        self._changed = asyncio.Event()

    async def run(self, receiver: Receiver) -> None:
        self._receiver = receiver
        receiver.link_changed(self.state)
        await asyncio.Event().wait()

    def connect(self) -> None:
        """The link is up."""
        self._become(LinkState(Phase.CONNECTED))

    def lose(self, error: Exception) -> None:
        """The link is down; what is in flight ends with an error."""
        self._become(LinkState(Phase.WAITING, "lost", "the test cut it"))
        for one in self.sent:
            if not one.done.done():
                one.done.set_exception(error)

    def _become(self, state: LinkState) -> None:
        self.state = state
        if self._receiver is not None:
            self._receiver.link_changed(state)
        self._changed.set()

    async def bring(self, topic: str, payload: Any) -> None:
        """A message from the broker; returns when it would be acknowledged."""
        assert self._receiver is not None
        raw = payload if isinstance(payload, bytes) else orjson.dumps(payload)
        await self._receiver.received(Incoming(topic, raw))

    def want(self, filters: Mapping[str, int], identity: Identity) -> None:
        self.filters, self.identity = dict(filters), identity

    async def room(self) -> None:
        while not (self.state.connected and len(self.in_flight) < self.window):
            self._changed.clear()
            await self._changed.wait()

    @property
    def in_flight(self) -> list[Sent]:
        """Not acknowledged yet."""
        return [one for one in self.sent if not one.done.done()]

    def submit(self, message: Outgoing) -> asyncio.Future[int]:
        one = Sent(message, asyncio.get_running_loop().create_future())
        self.sent.append(one)
        if self.answer is not None:
            one.done.set_result(self.answer)
        one.done.add_done_callback(lambda _done: self._changed.set())
        return one.done

    def describe(self) -> dict[str, Any]:
        return {"window": self.window, "in_flight": len(self.in_flight), "round_trip_ms": None, "reconnects": 0}
