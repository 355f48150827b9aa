"""Runs parameter operations on the vehicle of a link. Several may run side by side, each with its own window."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from typing import Final, Protocol

from petalbus.handlers.mavlink.errors import CommandOutcomeUnknown, ParamsIncomplete
from petalbus.handlers.mavlink.flight.commands import Command, Target
from petalbus.handlers.mavlink.flight.procedures import Cmd
from petalbus.handlers.mavlink.flight.state import Autopilot, VehicleState
from petalbus.handlers.mavlink.flight.vehicle import Vehicle
from petalbus.handlers.mavlink.params.gathering import Gathering
from petalbus.handlers.mavlink.params.transfer import Item, Limits, Remote, Transfer
from petalbus.handlers.mavlink.params.values import (
    PARAM_ERROR_ID,
    PARAM_REQUEST_LIST_ID,
    PARAM_VALUE_ID,
    ParamEncoding,
    ParamValue,
    pack_param_list,
    unpack_param_error,
    unpack_param_value,
)
from petalbus.handlers.mavlink.wire.calls import Operation
from petalbus.handlers.mavlink.wire.framing import Frame

Tell = Callable[[int, int | None], Awaitable[None]]
"""Told now and then: how many are done, and of how many (None while the vehicle did not say)."""

TELL_EVERY_S: Final = 0.25
_AUTOPILOT_VERSION: Final = 148
_BYTEWISE_BIT: Final = 16
_C_CAST_BIT: Final = 131072
_VERSION_S: Final = 1.5
_VERSION_AGAIN_S: Final = 0.4
_QUIET_S: Final = 0.4
_LIST_AGAIN_S: Final = 1.0
_GAP_LIMITS: Final = Limits(window=10, resend=0.5, retries=20)
_GAPS_S: Final = 4.0
_CONFIRM_LIMITS: Final = Limits(window=1, resend=0.5, retries=4)
_CONFIRM_S: Final = 2.5


class _Listener(Protocol):
    """An operation that wants to see answers."""

    def on_value(self, value: ParamValue, now: float) -> None: ...

    def on_error(self, name: str, error: int, now: float) -> None: ...


class ParamClient:
    """The parameters of one vehicle. ``on_frames`` must see every frame of the link."""

    def __init__(
        self,
        send_payload: Callable[[int, bytes, int], int],
        vehicle: Vehicle,
        *,
        system: int,
        component: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``send_payload(msgid, payload, system)`` returns to how many peers it left; ``system``/``component`` is who
        we are.
        """
        self._send_payload = send_payload
        self._vehicle = vehicle
        self._own = system, component
        self._clock = clock
        self._remote: Remote | None = None
        self._listeners: list[_Listener] = []
        self._news = asyncio.Event()
        self._setting: set[str | int] = set()
        self._set_free = asyncio.Condition()

    def on_frames(self, frames: Sequence[Frame]) -> None:
        """Look at what came; costs nothing while no operation runs."""
        remote = self._remote
        if not self._listeners or remote is None:
            return
        now = self._clock()
        for frame in frames:
            if frame.msgid == PARAM_VALUE_ID:
                if (frame.sysid, frame.compid) == (remote.system, remote.component):
                    value = unpack_param_value(frame.payload)
                    for listener in self._listeners:
                        listener.on_value(value, now)
                    self._news.set()
            elif frame.msgid == PARAM_ERROR_ID and frame.sysid == remote.system:
                name, error, *asker = unpack_param_error(frame.payload)
                if asker[0] in (0, self._own[0]) and asker[1] in (0, self._own[1]):
                    for listener in self._listeners:
                        listener.on_error(name, error, now)
                    self._news.set()

    async def read(self, names: Iterable[str], *, limits: Limits, timeout: float, tell: Tell | None = None) -> Transfer:
        """Read parameters by name. Raises NotConnected."""
        remote = await self._reach()
        transfer = Transfer(map(Item, names), remote=remote, limits=limits)
        return await self._run(transfer, Operation(remote.system), timeout=timeout, tell=tell)

    async def write(
        self, items: Iterable[Item], *, limits: Limits, timeout: float, tell: Tell | None = None
    ) -> Transfer:
        """Set parameters. Waits while another operation sets one of them. Raises NotConnected."""
        remote = await self._reach()
        wanted = list(items)
        end = self._clock() + timeout
        async with self._turn({item.key for item in wanted}, end) as ours:
            transfer = Transfer(wanted, remote=remote, limits=limits)
            if ours:
                await self._run(transfer, Operation(remote.system), timeout=end - self._clock(), tell=tell)
            else:
                transfer.give_up()
            return transfer

    async def list_all(self, *, timeout: float, tell: Tell | None = None) -> dict[str, ParamValue]:
        """All parameters. Raises NotConnected, and ParamsIncomplete when some are missing after ``timeout`` seconds."""
        remote = await self._reach()
        end = self._clock() + timeout
        listing, operation = Gathering(), Operation(remote.system)
        stuck = False
        with self._listening(listing):
            while self._clock() < end:
                if stuck or listing.over or not listing.missing:
                    listing.begin()
                    payload = pack_param_list(system=remote.system, component=remote.component)
                    self._transmit(PARAM_REQUEST_LIST_ID, payload, operation)
                await self._stream(listing, end, tell)
                stuck = False
                if listing.missing and not listing.over:
                    gaps = Transfer(map(Item, listing.missing), remote=remote, limits=_GAP_LIMITS)
                    await self._run(gaps, operation, timeout=min(_GAPS_S, end - self._clock()))
                    stuck = not gaps.values  # positions that are gone, perhaps: ArduPilot tells the old total
                if listing.whole and await self._confirmed(listing, remote, operation, end):
                    return listing.values
        raise ParamsIncomplete(len(listing.values), listing.last_total, timeout)

    async def _confirmed(self, listing: Gathering, remote: Remote, operation: Operation, end: float) -> bool:
        """Whether the vehicle still counts as many as in its list, as far as it says.

        ArduPilot tells the total that it had when a list began, and the present one where somebody asks for one
        parameter. (PX4 always tells the present one.)
        """
        if remote.encoding is not ParamEncoding.C_CAST:
            return True
        one = Transfer([Item(next(iter(listing.values)))], remote=remote, limits=_CONFIRM_LIMITS)
        await self._run(one, operation, timeout=min(_CONFIRM_S, end - self._clock()))
        return listing.steady

    def learn(self, values: Iterable[ParamValue]) -> None:
        """Types of parameters that came another way: then they need not be asked for before one is set."""
        if self._remote is not None:
            self._remote.types.update({value.name: value.param_type for value in values})

    async def encoding(self) -> ParamEncoding | None:
        """How the vehicle sends integers; asks it when its heartbeat does not tell. None: nobody knows."""
        return (await self._reach()).encoding

    async def _stream(self, listing: Gathering, end: float, tell: Tell | None) -> None:
        """Wait until the list's values stop coming."""
        told = self._clock()
        quiet_at = told + _LIST_AGAIN_S
        while not listing.over and (now := self._clock()) < min(quiet_at, end):
            self._news.clear()
            await self._wait(min(quiet_at, end) - now)
            now = self._clock()
            if listing.moved():
                quiet_at = now + _QUIET_S
            if tell is not None and now - told >= TELL_EVERY_S:
                told = now
                await tell(len(listing.values), listing.total)

    async def _run(
        self, transfer: Transfer, operation: Operation, *, timeout: float, tell: Tell | None = None
    ) -> Transfer:
        end = self._clock() + timeout
        told = self._clock()
        with self._listening(transfer):
            while not transfer.finished and (now := self._clock()) < end:
                self._news.clear()
                for msgid, payload in transfer.poll(now):
                    self._transmit(msgid, payload, operation)
                if transfer.done == transfer.total:
                    break
                await self._wait(min(transfer.next_due(now), end) - self._clock())
                if tell is not None and self._clock() - told >= TELL_EVERY_S:
                    told = self._clock()
                    await tell(transfer.done, transfer.total)
        transfer.give_up()
        return transfer

    def _transmit(self, msgid: int, payload: bytes, operation: Operation) -> None:
        operation.note(self._send_payload(msgid, payload, operation.system), f"message {msgid}")

    async def _wait(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return

    @contextmanager
    def _listening(self, listener: _Listener) -> Iterator[None]:
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    @asynccontextmanager
    async def _turn(self, names: set[str | int], end: float) -> AsyncIterator[bool]:
        """Two operations that set the same parameter would undo each other: one after the other."""
        try:
            async with asyncio.timeout(max(0.0, end - self._clock())), self._set_free:
                await self._set_free.wait_for(lambda: not names & self._setting)
                self._setting |= names
        except TimeoutError:
            yield False
            return
        try:
            yield True
        finally:
            self._setting -= names
            async with self._set_free:
                self._set_free.notify_all()

    async def _reach(self) -> Remote:
        """The vehicle, its encoding known if it can be. Raises NotConnected."""
        state = self._vehicle.heard_lately()
        if self._remote is None or self._remote.system != state.system:
            self._remote = Remote(system=state.system)
        remote = self._remote
        remote.encoding = encoding_of(state)
        if remote.encoding is None and state.capabilities is None:
            await self.ask_version(state)
            remote.encoding = encoding_of(state)
        return remote

    async def ask_version(self, state: VehicleState) -> None:
        """Ask for AUTOPILOT_VERSION, which tells the capabilities; a vehicle that does not answer is left alone."""
        end = self._clock() + _VERSION_S
        while (left := end - self._clock()) > 0:
            again = self._clock() + min(left, _VERSION_AGAIN_S)
            await self._ask_version_once(state, min(left, _VERSION_AGAIN_S))
            while state.capabilities is None and self._clock() < again:  # the message itself may be lost
                await self._vehicle.changed(again - self._clock())
            if state.capabilities is not None:
                return

    async def _ask_version_once(self, state: VehicleState, seconds: float) -> None:
        ask = Command(Cmd.REQUEST_MESSAGE, (_AUTOPILOT_VERSION,), idempotent=True, answer=seconds)
        with suppress(CommandOutcomeUnknown):
            async with aclosing(self._vehicle.client.run(ask, Target(state.system))) as acks:
                async for _ in acks:
                    break


def encoding_of(state: VehicleState) -> ParamEncoding | None:
    """The heartbeat decides, then the capability bits; None: not known."""
    if state.autopilot == Autopilot.ARDUPILOT:
        return ParamEncoding.C_CAST
    if state.autopilot == Autopilot.PX4:
        return ParamEncoding.BYTEWISE
    bits = state.capabilities or 0
    if bits & _BYTEWISE_BIT:
        return ParamEncoding.BYTEWISE
    return ParamEncoding.C_CAST if bits & _C_CAST_BIT else None
