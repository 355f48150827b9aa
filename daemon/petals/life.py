"""One life of a petal in the daemon's own process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from petalbus.daemon.petals.budget import Breaker
from petalbus.daemon.petals.discovery import Found, load
from petalbus.daemon.petals.errors import LoadFailed
from petalbus.daemon.runtime.own_thread import in_own_thread
from petalbus.petals.exits import contained
from petalbus.petals.hosting import HostOptions, PetalHost
from petalbus.petals.owner import tasks_of

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.daemon.http.mounts import PetalMounts
    from petalbus.petals.base import Petal
    from petalbus.petals.proxies.base import BaseProxy

log = structlog.get_logger(__name__)

IMPORT_SECONDS = 60.0


class Life(Protocol):
    """What a petal's life looks like from outside, wherever it is lived."""

    name: str
    version: str
    broken: asyncio.Event
    """Set when it cannot go on: its process ended, or its handlers fail one after the other."""

    why: str

    async def prepare(self) -> tuple[str, ...]:
        """Load it; the proxies that it needs."""

    async def start(self) -> None:
        """Start it. Raises what is wrong."""

    async def stop(self) -> None:
        """Stop it in order. Raises what the petal raises."""

    async def organization_changed(self) -> None:
        """The organisation is known now, or another one."""

    def counters(self) -> dict[str, Any]:
        """What it has done."""


class InDaemon:
    """A petal on the daemon's loop."""

    def __init__(
        self,
        found: Found,
        *,
        proxies: Mapping[str, BaseProxy],
        connect: Callable[[str], Bus],
        mounts: PetalMounts | None,
        needs: tuple[str, ...] = (),
        timeout: float | None = None,
        failures: int = 10,
    ) -> None:
        self.name = found.name
        self.version = ""
        self.broken = asyncio.Event()
        self.why = ""
        self._found = found
        self._proxies = proxies
        self._connect = connect
        self._mounts = mounts
        self._breaker = Breaker(failures)
        self._failures = failures
        self._options = HostOptions(
            needs=needs, templates=self._templates, routes=self._serve, timeout=timeout, ended=self._ended
        )
        self._host: PetalHost[Petal] | None = None
        self._mounted = False

    @property
    def needs(self) -> tuple[str, ...]:
        """Proxies that it needs, once it is loaded."""
        return self._host.needs if self._host is not None else ()

    async def prepare(self) -> tuple[str, ...]:
        """Import it in a thread, and make it. Raises LoadFailed, and what its constructor raises."""
        try:
            async with asyncio.timeout(IMPORT_SECONDS):
                petal = await in_own_thread(lambda: load(self._found), name="petal-import")
        except TimeoutError:
            text = f"importing {self._found.target} did not end within {IMPORT_SECONDS:g} s; it may hang for ever"
            raise LoadFailed(text) from None
        with contained():
            self._host = PetalHost(petal, self._proxies, self._connect, options=self._options)
        self.name = self._host.petal.name or self._found.name
        self.version = self._host.petal.version
        return self._host.needs

    async def start(self) -> None:
        """Start it. Raises PetalNotStarted, and what the petal raises."""
        assert self._host is not None
        try:
            await self._host.start()
        except BaseException:
            await self._unmount("failed")
            await self._end_left(self._host)
            raise

    async def stop(self) -> None:
        """Routes first, then the petal. Tasks that it made in ``startup`` and forgot are ended, and named."""
        host, self._host = self._host, None
        try:
            await self._unmount("stopped")
        finally:
            try:
                if host is not None:
                    await host.stop()
            finally:
                await self._end_left(host)

    async def organization_changed(self) -> None:
        """Set MQTT up, if that is still to do."""
        if self._host is not None and self._host.bus is not None:
            await self._host.set_up_mqtt()

    def counters(self) -> dict[str, Any]:
        """Records handled, how they ended, and requests."""
        told: dict[str, Any] = {"failures_in_a_row": self._breaker.failures}
        bus = self._host.bus if self._host is not None else None
        consumer = bus.statistics()["consumer"] if bus is not None else None
        if consumer is not None:
            told["records"] = consumer.get("outcomes", {})
            told["held"] = consumer.get("held", 0)
        if self._mounts is not None:
            told["http"] = self._mounts.statistics()["petals"].get(self.name, {})
        return told

    async def _serve(self, petal: Petal) -> None:
        if self._mounts is None:
            return
        problems = await self._mounts.mount_petal(petal)
        self._mounted = True
        for problem in problems:
            log.warning("a route of a petal cannot be served", petal=petal.name, problem=problem)

    def _templates(self, petal: Petal) -> Mapping[str, Any]:
        from petalbus.daemon.http.files import templates_of  # noqa: PLC0415  # in a thread: jinja2 and FastAPI come with it

        root = self._mounts.options.root if self._mounts is not None else None
        return templates_of(petal, root=root)

    async def _unmount(self, state: str) -> None:
        if self._mounts is not None and self._mounted:
            self._mounted = False
            await self._mounts.unmount(self.name, state=state)

    def _ended(self, *, ok: bool) -> None:
        if self._breaker.note(ok=ok):
            self.why = f"{self._failures} runs of its handlers failed one after the other"
            self.broken.set()

    async def _end_left(self, host: PetalHost[Petal] | None) -> None:
        """Tasks of the bus's client, which it began too, have ended with the client."""
        left = tasks_of(host.petal) - {asyncio.current_task()} if host is not None else set()
        for task in left:
            log.warning("a petal has left a task running; it is ended", petal=self.name, task=task.get_name())
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=1.0)
