"""A direct MQTT link under test: its receiver, a sender that gives nothing up, and waiting for states."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from petalbus.handlers.mqtt.direct import DirectTransport
from petalbus.handlers.mqtt.direct.kept import KeptFilters
from petalbus.handlers.mqtt.options import DirectOptions
from petalbus.handlers.mqtt.transport import Identity, Incoming, LinkLost, LinkState, Outgoing, Phase

SECONDS = 15.0


class Store:
    """Keeps what arrives, or says that it cannot."""

    def __init__(self) -> None:
        self.messages: list[Incoming] = []
        self.states: list[LinkState] = []
        self.failing = False
        self.tries = 0
        self.before: Callable[[Incoming], Any] | None = None
        self._turn = asyncio.Lock()

    async def received(self, message: Incoming) -> None:
        """Receiver.received."""
        async with self._turn:  # as on the bus: stored in the order in which it was begun
            self.tries += 1
            await asyncio.sleep(0)
            if self.failing:
                raise ConnectionError("the bus is away")
            if self.before is not None:
                await self.before(message)
            self.messages.append(message)

    def link_changed(self, state: LinkState) -> None:
        """Receiver.link_changed."""
        self.states.append(state)

    @property
    def payloads(self) -> list[bytes]:
        """What was stored, in order."""
        return [message.payload for message in self.messages]


class Running:
    """A transport that runs, and its store."""

    def __init__(self, transport: DirectTransport, store: Store) -> None:
        self.transport = transport
        self.store = store
        self.task = asyncio.create_task(transport.run(store))

    async def connected(self) -> None:
        """Wait until it is."""
        await until(lambda: self.transport.state.connected, lambda: f"connected; it is {self.transport.describe()}")

    async def problem(self, word: str, phase: Phase = Phase.WAITING) -> LinkState:
        """Wait until it has told a state with this problem; returns that state."""
        found: list[LinkState] = []

        def told() -> bool:
            found[:] = [one for one in self.store.states if one.problem == word and one.phase is phase]
            return bool(found)

        await until(told, lambda: f"problem {word}; told: {self.store.states}")
        return found[-1]

    async def send(self, message: Outgoing) -> int:
        """Send one message and wait for the broker's answer."""
        async with asyncio.timeout(SECONDS):
            await self.transport.room()
            return await self.transport.submit(message)

    async def stop(self) -> None:
        """Cancel it and wait for its end, which is prompt."""
        self.task.cancel()
        done, _ = await asyncio.wait({self.task}, timeout=SECONDS)
        assert done, "it did not end"
        assert self.task.cancelled(), self.task


async def until(condition: Callable[[], Any], what: Callable[[], str], *, seconds: float = SECONDS) -> None:
    """Wait, bounded, until the condition is true."""
    end = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < end, f"not within {seconds:g} s: {what()}"
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def link(
    port: int,
    filters: Iterable[str] = (),
    *,
    client: str = "drone-1",
    store: Store | None = None,
    kept: KeptFilters | None = None,
    **options: Any,
) -> AsyncIterator[Running]:
    """A running direct link to a broker on this machine, with short pauses; stopped at the end."""
    given = {"host": "127.0.0.1", "retry_first": 0.05, "retry_most": 0.5, "connect_every": 0.0, **options}
    transport = DirectTransport(DirectOptions(port=port, **given), kept=kept)
    transport.want(dict.fromkeys(filters, 1), Identity(device="device-1", client_id=client))
    running = Running(transport, store or Store())
    try:
        yield running
    finally:
        if not running.task.done():
            await running.stop()
        assert transport.state == LinkState()


def outgoing(number: int, topic: str = "out", **more: Any) -> Outgoing:
    """A message whose payload is its number."""
    return Outgoing(id=f"m{number}", topic=topic, payload=str(number).encode(), **more)


async def send_all(
    running: Running,
    messages: Iterable[Outgoing],
    confirmed: dict[bytes, float] | None = None,
    *,
    may_go_on: Callable[[], bool] = lambda: True,
) -> int:
    """Send in order, and again from the first one that was lost, until the broker has all; returns how often again.

    ``confirmed`` gets the time.monotonic() at which the broker's answer was looked at, by payload.
    """
    waiting, flying, again = deque(messages), deque[tuple[Outgoing, asyncio.Future[int]]](), 0
    transport = running.transport
    while waiting or flying:
        while flying and flying[0][1].done():
            try:
                flying[0][1].result()
                message = flying.popleft()[0]
                if confirmed is not None:
                    confirmed[message.payload] = time.monotonic()
            except LinkLost:
                await asyncio.wait([future for _, future in flying])
                again += len(flying)
                waiting.extendleft(message for message, _ in reversed(flying))
                flying.clear()
        if waiting:
            await transport.room()
            while not may_go_on():
                await asyncio.sleep(0.002)
            if flying and flying[0][1].done():
                continue  # lost while there was no room: those go first
            message = waiting.popleft()
            flying.append((message, transport.submit(message)))
        elif flying:
            await asyncio.wait({flying[0][1]})
    return again
