"""What petals find around them in one process: the organisation, and the proxies."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from petalbus.petals.organization import FILE, OrganizationManager, set_organization_manager
from petalbus.petals.proxies.context import ProxyContext
from petalbus.petals.proxies.registry import Proxies

log = logging.getLogger("petalbus.petals")


class Surroundings:
    """Started before the first petal, stopped after the last."""

    def __init__(self, *, url: str, bus: str, app: str, data: Path, settings: Any) -> None:
        file = getattr(settings, "organization_file", None)
        machine = getattr(settings, "machine_id", None)
        self.organization = OrganizationManager(file or FILE, data=data, machine_id=machine)
        context = ProxyContext(url=url, bus=bus, app=app, data=data, settings=settings, organization=self.organization)
        self.proxies = Proxies(context)
        self._started = False

    async def start(self, proxies: Iterable[str] | None = None) -> None:
        """The organisation first: proxies ask it. ``proxies``: those enabled; None for all. Does nothing twice."""
        if self._started:
            return
        self._started = True
        set_organization_manager(self.organization)
        await self.organization.start()
        await self.proxies.start(proxies)

    async def stop(self) -> None:
        """Both, in reverse."""
        if not self._started:
            return
        self._started = False
        await self.proxies.stop()
        await self.organization.stop()
        set_organization_manager(None)

    def watch_organization(self, changed: Callable[[], Awaitable[None]]) -> None:
        """Await ``changed()`` whenever the organisation is another one."""

        async def tell(_organization: str | None) -> None:
            try:
                await changed()
            except Exception:
                log.exception("a change of the organisation could not be told")

        self.organization.register_callback(tell)
