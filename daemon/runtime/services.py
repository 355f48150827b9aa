"""The daemon's own services: what keeps the bus itself in order. Each is listed here, or it does not run.

They work on the daemon's own client of the bus. Cancelling one ends it in order: what it had taken and not finished is
found again by its next start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from petalbus.daemon.runtime.supervisor import Kept, RunPart
from petalbus.daemon.services import (
    Ingest,
    IngestOptions,
    Janitor,
    JanitorOptions,
    PlainKeys,
    PlainOptions,
    PubSubBridge,
)
from petalbus.daemon.services.retention import Keep

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.daemon.config import Settings


class Service(Protocol):
    """What a service is."""

    async def run(self) -> None:
        """Work until cancelled."""

    def statistics(self) -> Mapping[str, Any]:
        """What it has done so far."""


Make = Callable[["Bus", "Settings"], Service]


def _ingest(bus: Bus, settings: Settings) -> Service:
    return Ingest(bus, options=IngestOptions(telemetry_rate=settings.ingest_telemetry_rate))


def _janitor(bus: Bus, settings: Settings) -> Janitor:
    keep = Keep(
        topics=settings.keep_topics,
        inboxes=settings.keep_inboxes,
        replies=settings.keep_replies,
        dead=settings.keep_dead,
    )
    return Janitor(bus, options=JanitorOptions(keep=keep, gone_after=settings.keep_for))


def _plain(bus: Bus, settings: Settings) -> Service:
    return PlainKeys(bus, options=PlainOptions(enabled=getattr(settings, "bridge_plain_keys", True)))


def _pubsub(bus: Bus, settings: Settings) -> Service:
    return PubSubBridge(bus, patterns=[word.strip() for word in settings.bridge_channels.split(",") if word.strip()])


async def prepare(bus: Bus, settings: Settings) -> None:
    """What must have happened before anything is written on the bus in this boot. Raises BusError."""
    await _janitor(bus, settings).prepare()


SERVICES: Final[Mapping[str, Make]] = {"ingest": _ingest, "janitor": _janitor, "plain-keys": _plain, "pubsub": _pubsub}


def service_part(make: Make, bus: Bus, settings: Settings) -> RunPart:
    """A service as a part of the daemon; every start is a new one."""

    async def run(kept: Kept) -> None:
        service = make(bus, settings)
        kept.up(service.statistics)
        await service.run()

    return run
