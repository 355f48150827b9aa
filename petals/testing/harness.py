"""Runs one petal in a test, as the runtime runs it, and speaks with it over a bus.

async with PetalHarness(Camera) as h:
    reply = await h.request("photo.take", {"count": 3})
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any, Final, Generic, Self, TypeVar

from petalbus.daemon.bus.client import Bus, Receipt
from petalbus.daemon.bus.requests import OnProgress
from petalbus.petals.base import Petal
from petalbus.petals.hosting import HostOptions, PetalHost
from petalbus.petals.proxies.base import BaseProxy
from petalbus.petals.testing.asgi import Application, WebSocket
from petalbus.petals.testing.buses import MemoryBus, TestBus
from petalbus.petals.testing.faults import FaultRun, Faults
from petalbus.petals.testing.life import Life, LifeTasks
from petalbus.petals.testing.records import Captured, NotExpected, Recorder, Where, conditions, fits
from petalbus.petals.testing.wire import Wire
from petalbus.schemas.record import Record
from petalbus.schemas.stamps import new_id
from petalbus.schemas.vocabulary import Priority, ReplyKind

log = logging.getLogger("petalbus.testing")

WITHIN: Final = 5.0
"""Seconds that something expected may take when nothing else is said."""

Proxies = Mapping[str, Any]

P = TypeVar("P", bound=Petal)


class PetalHarness(Generic[P]):
    """Starts ``petal`` on a bus and stops it at the end of the block.

    ``proxies``: what the petal gets, by registry name: an object as it is, or a function of the TestBus that makes one
    (a BaseProxy that is not started is started before the petal and stopped after it). ``bus``: the bus to use; a
    MemoryBus of its own when not given. ``faults``: what shall go wrong. ``app``: the test's own name on the bus.

    Entering raises what the petal's start raises.
    """

    def __init__(
        self,
        petal: type[P],
        *,
        proxies: Proxies | None = None,
        bus: TestBus | None = None,
        faults: Faults | None = None,
        app: str = "tester",
    ) -> None:
        self.bus = bus if bus is not None else MemoryBus()
        self.faults = FaultRun(faults or Faults())
        self.crashes = 0
        self.tester: Bus
        """The test's own client of the bus; no fault touches it."""
        self._petal_class = petal
        self._given = dict(proxies or {})
        self._app = app
        self._proxies: dict[str, BaseProxy] = {}
        self._life: Life[P] | None = None
        self._lives = 0
        self._recorder: Recorder
        self._http: Any = None
        self._served: tuple[Petal, Application] | None = None
        self._crashing: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._last_sent: str | None = None
        self._stack = AsyncExitStack()

    # -- life ---------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.bus)
            stack.enter_context(LifeTasks())
            self._recorder = Recorder(self.bus.url, self.bus.name)
            await self._recorder.start()
            stack.push_async_callback(self._recorder.stop)
            self.tester = await stack.enter_async_context(self.bus.client(self._app))
            await self._make_proxies(stack)
            self._life = await self._begin()
            stack.push_async_callback(self._end)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()
        if self._failure is not None and exc[0] is None:
            raise self._failure

    @property
    def petal(self) -> P:
        """The petal that lives now; another one after a crash."""
        if self._life is None:
            raise RuntimeError("no petal lives: use the harness with `async with`") from self._failure
        return self._life.host.petal

    @property
    def name(self) -> str:
        """The petal's name, which is its app on the bus."""
        return self._petal_class.name

    async def crash(self, reason: str = "by the test") -> None:
        """Kill the petal without a farewell and start a successor; returns when that has started."""
        life, self._life = self._life, None
        if life is None:
            return
        log.info("petal %s crashes: %s", self.name, reason)
        self.crashes += 1
        await life.kill()
        try:
            self._life = await self._begin()
        except BaseException as error:
            self._failure = error
            raise

    async def stop(self) -> None:
        """Stop the petal in order, before the end of the block; ``start`` brings a new instance."""
        life, self._life = self._life, None
        if life is not None:
            await life.stop()

    async def start(self) -> None:
        """Start a new instance after ``stop``."""
        if self._life is None:
            self._life = await self._begin()

    # -- sending ------------------------------------------------------------------------------------------------------

    async def send(
        self,
        type: str,
        data: Any,
        *,
        priority: Priority | int | None = None,
        id: str | None = None,
        deadline: float | None = None,
        key: str | None = None,
        content_type: str | None = None,
    ) -> Receipt:
        """Put a record into the petal's inbox, as ``bus.send`` does (``deadline`` in seconds from now)."""
        message_id, name = self._numbered(id)
        given: dict[str, Any] = {"priority": priority, "deadline": deadline, "key": key, "content_type": content_type}
        receipt = await self.tester.send(self.name, type, data, id=message_id, **given)
        if self.faults.duplicate(name):
            await self.tester.send(self.name, type, data, id=message_id, **given)
        return receipt

    async def request(
        self,
        type: str,
        data: Any,
        *,
        timeout: float = WITHIN,
        priority: Priority | int | None = None,
        id: str | None = None,
        key: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> Record:
        """Ask the petal and return its reply, as ``bus.request`` does, with its errors."""
        message_id, name = self._numbered(id)
        given: dict[str, Any] = {"timeout": timeout, "priority": priority, "key": key}
        reply = await self.tester.request(self.name, type, data, id=message_id, on_progress=on_progress, **given)
        if self.faults.duplicate(name):
            await self.tester.request(self.name, type, data, id=message_id, **given)
        return reply

    async def publish(self, topic: str, type: str, data: Any, *, content_type: str | None = None) -> Receipt:
        """Publish to a topic, as any other program on the bus."""
        return await self.tester.publish(topic, type, data, content_type=content_type)

    # -- expecting ----------------------------------------------------------------------------------------------------

    @property
    def records(self) -> list[Captured]:
        """Everything captured so far on this bus, oldest first; ``await catch_up()`` before to have all of it."""
        return list(self._recorder.captured)

    async def catch_up(self) -> None:
        """Return when everything that was appended before the call is among the ``records``."""
        self._check()
        await self._recorder.catch_up()

    async def expect(
        self,
        *,
        type: str | None = None,
        where: Where | None = None,
        place: str | None = None,
        kind: ReplyKind | str | None = None,
        within: float = WITHIN,
    ) -> Record:
        """The first record that fits and that no earlier ``expect`` has returned; waits ``within`` seconds for it.

        ``where``: a function of the record, or members of its payload. ``place``: where it was appended, or how that
        begins: ``topic:alerts``, ``replies``, ``inbox:camera``. Raises NotExpected, which shows what was captured.
        """
        self._check()
        what = conditions(type=type, where=where, place=place, kind=kind)
        return await self._wait(type, where, place, kind, None, within, what)

    async def expect_reply(
        self,
        to: Receipt | str | None = None,
        *,
        kind: ReplyKind | str | None = None,
        type: str | None = None,
        where: Where | None = None,
        within: float = WITHIN,
    ) -> Record:
        """The next reply to a record that was sent: ``to`` is its receipt or id, the last one sent when not given.

        Without ``kind`` a final one (``result``, ``error``, ``cancelled``). Raises NotExpected.
        """
        self._check()
        message_id = to.id if isinstance(to, Receipt) else to or self._last_sent
        if message_id is None:
            raise ValueError("nothing was sent yet: say to which record a reply is expected")
        what = f"a reply to {message_id} with {conditions(kind=kind or 'final', type=type, where=where)}"
        final = fits(type=None, kind=None, place=None, reply_to=None, where=where)

        def finals(record: Record) -> bool:
            return record.kind is not None and record.kind.final and final(Captured("", record))

        chosen = where if kind is not None else finals
        return await self._wait(type, chosen, "replies", kind, message_id, within, what)

    async def expect_none(
        self, *, type: str | None = None, where: Where | None = None, place: str | None = None, within: float = 0.2
    ) -> None:
        """Nothing that fits comes within so many seconds (and none was captured). Raises NotExpected when it does."""
        what = conditions(type=type, where=where, place=place)
        try:
            record = await self.expect(type=type, where=where, place=place, within=within)
        except NotExpected:
            return
        raise NotExpected(f"{what} came, which must not: {record.type} {record.raw!r}. {self._recorder.describe()}")

    # -- HTTP ---------------------------------------------------------------------------------------------------------

    @property
    def http(self) -> Any:
        """An ``httpx.AsyncClient`` on the petal's routes: ``h.http.get("/status")`` is ``/petals/<name>/status``."""
        if self._http is None:
            import httpx  # noqa: PLC0415  # only who speaks HTTP needs it

            transport = httpx.ASGITransport(app=self._serve)
            self._http = httpx.AsyncClient(transport=transport, base_url=f"http://petal/petals/{self.name}")
            self._stack.push_async_callback(self._http.aclose)
        return self._http

    def websocket(self, path: str, *, timeout: float = WITHIN) -> WebSocket:
        """A websocket of the petal: ``async with h.websocket("/echo") as socket``."""
        return WebSocket(self._serve, f"/petals/{self.name}{path}", timeout=timeout)

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        petal = self.petal
        if self._served is None or self._served[0] is not petal:
            self._served = (petal, await asyncio.to_thread(self._make_app, petal))
        await self._served[1](scope, receive, send)

    def _host_options(self) -> HostOptions:
        """What the daemon adds to a petal's life. ``petalbus.testing`` overrides it, as ``_make_app``."""
        return HostOptions()

    def _make_app(self, petal: Petal) -> Application:
        """The petal's ASGI app. ``petalbus.testing`` overrides it: the HTTP part stands above this room."""
        raise NotImplementedError(f"petal {petal.name!r}: use the harness of petalbus.testing")

    # -- within -------------------------------------------------------------------------------------------------------

    async def _begin(self) -> Life[P]:
        self._lives += 1
        path = self.bus.directory / f"wire{self._lives}.sock"
        wire = Wire(path, self.bus.socket, self.faults, on_crash=self._crashed)
        buses: list[Bus] = []

        def connect(app: str) -> Bus:
            bus = self.bus.client(app, url=f"unix://{path}")
            buses.append(bus)
            return bus

        host = PetalHost(self._petal_class, self._proxies, connect, options=self._host_options())
        life = Life(host, wire, buses)
        await life.start()
        return life

    async def _end(self) -> None:
        while self._crashing:
            await asyncio.wait(self._crashing)
        self.faults.calm()  # an orderly end is no part of the test
        await self.stop()

    def _crashed(self) -> None:
        task = asyncio.create_task(self.crash("as the faults say"), name="petal-crash")
        self._crashing.add(task)
        task.add_done_callback(self._crashing.discard)

    async def _make_proxies(self, stack: AsyncExitStack) -> None:
        for name, given in self._given.items():
            proxy = given(self.bus) if callable(given) and not isinstance(given, BaseProxy) else given
            if isinstance(proxy, BaseProxy) and not proxy.is_ready:
                await proxy.start()
                stack.push_async_callback(proxy.stop)
            self._proxies[name] = proxy

    def _numbered(self, id: str | None) -> tuple[str, str]:
        self._check()
        self._last_sent = id or new_id()
        return self._last_sent, self.faults.name(self._last_sent)

    def _check(self) -> None:
        if self._failure is not None:
            raise RuntimeError(f"petal {self.name!r} could not be started again: {self._failure}") from self._failure

    async def _wait(  # the conditions of both calls, in one place
        self,
        type: str | None,
        where: Where | None,
        place: str | None,
        kind: ReplyKind | str | None,
        reply_to: str | None,
        within: float,
        what: str,
    ) -> Record:
        test = fits(type=type, kind=kind, place=place, reply_to=reply_to, where=where)
        return await self._recorder.wait_for(test, within, what)
