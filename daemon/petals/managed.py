"""One petal that is kept in the state that was asked for: enabled ones run, disabled ones do not.

disabled <-> starting -> waiting (for proxies) -> running -> stopping
                |                                   |
                +------------- failed <-------------+   after too many failures; until it is restarted or reloaded
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Any, Final

import structlog

from petalbus.daemon.petals.budget import Budget, Limits
from petalbus.daemon.petals.discovery import Found
from petalbus.daemon.petals.errors import ChosenOtherwise, LoadFailed, NotWanted
from petalbus.daemon.petals.life import Life
from petalbus.daemon.runtime.supervisor import explained
from petalbus.petals.exits import contained
from petalbus.petals.hosting import PetalNotStarted

START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 9.0
_MAX_TRACE: Final = 8_000
_LOOK_SECONDS: Final = 1.0

log: Final = structlog.get_logger(__name__)


class PetalState(StrEnum):
    """Where a petal stands."""

    DISABLED = "disabled"
    STARTING = "starting"
    WAITING = "waiting"
    RUNNING = "running"
    STOPPING = "stopping"
    FAILED = "failed"


class Managed:
    """``make``: a new life. ``missing``: names and reasons of proxies that cannot be used now."""

    def __init__(
        self,
        found: Found,
        make: Callable[[], Life],
        *,
        missing: Callable[[tuple[str, ...]], dict[str, str]],
        changed: Callable[[Managed], None],
        limits: Limits,
        isolation: str,
    ) -> None:
        self.found = found
        self.isolation = isolation
        self.name = found.name
        self.version = ""
        self.state = PetalState.DISABLED
        self.reason = ""
        self.trace = ""
        self.since = time.monotonic()
        self.was_asked_for = False
        """Somebody started it by hand: then it runs, whatever the choices say."""

        self.blocks = 0
        """Times that it held up the loop."""

        self.claim: Callable[[str], str | None] = lambda _name: None
        """Called with the petal's own name before it starts: who has it already. It is given back by ``release``."""

        self.release: Callable[[], None] = lambda: None

        self.judge: Callable[[], Awaitable[None]] = _anything_goes
        """Called once the petal's own name is known, which choices may go by. Raises NotWanted or ChosenOtherwise."""

        self._make = make
        self._missing = missing
        self._changed = changed
        self._budget = Budget(limits)
        self._life: Life | None = None
        self._proxies_changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()

    @property
    def names(self) -> frozenset[str]:
        """By what it may be meant."""
        return frozenset((self.name, self.found.name))

    @property
    def is_beginning(self) -> bool:
        """True between the order to run and the first step."""
        return self._task is not None and not self._task.done() and self.state is PetalState.DISABLED

    async def enable(self) -> None:
        """Begin to keep it running; returns at once."""
        async with self._turn:
            self._begin()

    async def disable(self, reason: str = "") -> None:
        """Stop it, and keep it stopped."""
        async with self._turn:
            await self._end()
            self.was_asked_for = False
            self._set(PetalState.DISABLED, reason)

    async def restart(self, between: Callable[[], object] | None = None) -> None:
        """Stop it, and begin anew with all attempts free. ``between``: called in a thread while it is stopped."""
        async with self._turn:
            await self._end()
            if between is not None:
                await asyncio.to_thread(between)
            self._budget.reset()
            self.was_asked_for = True
            self._begin()

    def proxies_changed(self) -> None:
        """One that it waits for may be there now."""
        self._proxies_changed.set()

    async def organization_changed(self) -> None:
        """The organisation is known now, or another one."""
        if self._life is not None and self.state is PetalState.RUNNING:
            try:
                await self._life.organization_changed()
            except Exception:
                log.exception("a petal could not be connected to MQTT", petal=self.name)

    def describe(self) -> dict[str, Any]:
        """Everything about it."""
        told: dict[str, Any] = {
            "name": self.name,
            "state": str(self.state),
            "version": self.version or None,
            "reason": self.reason or None,
            "isolation": self.isolation,
            "origin": self.found.origin,
            "entry_point": self.found.name,
            "target": self.found.target,
            "for_s": round(time.monotonic() - self.since, 1),
            "restarts": self._budget.total,
            "loop_blocks": self.blocks,
        }
        if self.trace:
            told["trace"] = self.trace
        if self._life is not None:
            told["counters"] = self._life.counters()
        return told

    def _begin(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._keep(), name=f"petal-{self.found.name}")

    async def _end(self) -> None:
        """A life that is ending already is not disturbed: its end is bounded, and the next one must not overlap it."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        if self._ending is not None:
            await asyncio.wait([self._ending])

    async def _keep(self) -> None:
        while True:
            try:
                with contained():
                    await self._live()
            except ChosenOtherwise:
                continue
            except NotWanted as reason:
                self._set(PetalState.DISABLED, str(reason))
                return
            except Exception as error:  # noqa: BLE001  # whatever a petal raises ends this life of it and nothing else
                pause = self._budget.failed(time.monotonic())
                if isinstance(error, LoadFailed):
                    pause = None  # the same files would fail the same way
                self._fail(error, pause)
                if pause is None:
                    return
                await asyncio.sleep(pause)

    async def _live(self) -> None:
        """One life, until it breaks or is cancelled."""
        self._set(PetalState.STARTING)
        self._life = life = self._make()
        try:
            async with asyncio.timeout(START_SECONDS):
                needs = await life.prepare()
            self.name, self.version = life.name, life.version
            if (owner := self.claim(life.name)) is not None:
                raise LoadFailed(f"the name {life.name!r} belongs to another petal already ({owner})")
            await self.judge()
            await self._start(life, needs)
            self.trace = ""
            self._set(PetalState.RUNNING)
            await self.organization_changed()  # it may have become known while the petal started
            log.info("petal runs", petal=self.name, version=self.version, isolation=self.isolation)
            await life.broken.wait()
            raise PetalNotStarted(life.why)
        finally:
            if self.state is not PetalState.FAILED:
                self._set(PetalState.STOPPING, self.reason)
            self._ending = asyncio.create_task(self._finish(life), name=f"petal-{self.found.name}-end")
            await asyncio.shield(self._ending)

    async def _start(self, life: Life, needs: tuple[str, ...]) -> None:
        while True:
            await self._await_proxies(needs)
            self._set(PetalState.STARTING)
            try:
                async with asyncio.timeout(START_SECONDS) as within:
                    await life.start()
            except PetalNotStarted as error:
                if not error.missing:
                    raise
                self._set(PetalState.WAITING, str(error))  # it has gone since we looked
                await asyncio.sleep(_LOOK_SECONDS)
            except TimeoutError:
                if within.expired():
                    raise PetalNotStarted(f"it did not start within {START_SECONDS:g} s") from None
                raise
            else:
                return

    async def _await_proxies(self, needs: tuple[str, ...]) -> None:
        while missing := self._missing(needs):
            waits = "; ".join(f"{name} ({why})" for name, why in missing.items())
            self._set(PetalState.WAITING, f"waiting for: {waits}")
            self._proxies_changed.clear()
            await self._proxies_changed.wait()

    async def _finish(self, life: Life) -> None:
        try:
            await self._stop(life)
        finally:
            self._life = None
            self.release()

    async def _stop(self, life: Life) -> None:
        try:
            async with asyncio.timeout(STOP_SECONDS):
                with contained():
                    await life.stop()
        except TimeoutError:
            log.warning("a petal does not stop in time and is left", petal=self.name, seconds=STOP_SECONDS)
        except Exception:
            log.exception("a petal failed while it stopped", petal=self.name)

    def _fail(self, error: Exception, pause: float | None) -> None:
        text = explained(error) if not isinstance(error, PetalNotStarted) else str(error)
        self.trace = "".join(traceback.format_exception(error))[-_MAX_TRACE:]
        again = f"; tried again in {pause:g} s" if pause is not None else "; not tried again until it is restarted"
        self._set(PetalState.FAILED, text + (again if not isinstance(error, LoadFailed) else ""))
        log.error("petal failed", petal=self.name, error=text, again_in=pause)
        log.debug("petal failed", petal=self.name, exc_info=error)

    def _set(self, state: PetalState, reason: str = "") -> None:
        if (state, reason) != (self.state, self.reason):
            self.state, self.reason, self.since = state, reason, time.monotonic()
            self._changed(self)


async def _anything_goes() -> None:
    """Nobody judges."""
