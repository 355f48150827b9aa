"""No way to the broker: MQTT is switched off, and what is published is refused, so that it does not pile up."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from petalbus.handlers.mqtt.transport import Identity, LinkState, Outgoing, Phase, PublishRefused, Receiver


class OffTransport:
    """Stands for a transport where none is wanted."""

    name = "off"

    def __init__(self) -> None:
        self.state = LinkState(Phase.OFF, "off", "MQTT is switched off (mqtt_transport)")
        self.refused = 0

    async def run(self, receiver: Receiver) -> None:
        """Do nothing until cancelled."""
        receiver.link_changed(self.state)
        await asyncio.Event().wait()

    def want(self, filters: Mapping[str, int], identity: Identity) -> None:
        """Nobody follows."""

    async def room(self) -> None:
        """There is always room for a refusal."""

    def submit(self, message: Outgoing) -> asyncio.Future[int]:  # noqa: ARG002  # every message alike
        """Refuse it."""
        self.refused += 1
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        done.set_exception(PublishRefused(self.state.reason, keep=False))
        return done

    def describe(self) -> dict[str, Any]:
        """Counters."""
        return {"window": 0, "in_flight": 0, "round_trip_ms": None, "reconnects": 0, "refused": self.refused}
