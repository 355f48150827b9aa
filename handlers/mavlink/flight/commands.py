"""Commands to a vehicle and their acknowledgements.

An acknowledgement carries no number, only the command's kind. So one command of a kind is under way to a target at a
time, the waiter stands before the command leaves, and an acknowledgement counts only from the target and for us.
A command leaves once: when no answer comes nobody can know whether it was executed, and a second "takeoff" may do
harm. Only what was declared idempotent is repeated, with the confirmation counter MAVLink has for that.

An acknowledgement may come twice: PX4 sends it on every wire that has heard us, and what left twice is answered twice.
Where an emergency stop hangs on it, for arming, disarming and motor tests, the next one's is doubtful for a while
therefore.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from petalbus.handlers.mavlink.errors import CommandOutcomeUnknown, NotConnected
from petalbus.handlers.mavlink.wire.dialect import Dialect, MavMessage
from petalbus.handlers.mavlink.wire.framing import Frame

COMMAND_ACK_ID: Final = 77
IN_PROGRESS: Final = 5
ACCEPTED: Final = 0

_MAX_ACKS: Final = 256
_MOST_DOUBTS: Final = 1024
_COPIES_MATTER: Final = frozenset((209, 310, 400))
"""DO_MOTOR_TEST, ACTUATOR_TEST, COMPONENT_ARM_DISARM."""


class Target(NamedTuple):
    """Who shall obey."""

    system: int
    component: int = 1
    """1 is the autopilot. Never 0: every component would obey, or none."""


@dataclass(frozen=True, slots=True)
class CommandTimes:
    """How long to wait, in seconds of monotonic time."""

    answer: float = 3.0
    """For the first acknowledgement."""
    progress: float = 10.0
    """From one IN_PROGRESS to the next."""
    whole: float = 120.0
    """For everything, however much progress is reported."""
    repeat: float = 0.5
    """Between two sendings of an idempotent command."""
    confirm: float = 3.0
    """After a doubtful acknowledgement: for a heartbeat that confirms it."""
    doubt: float = 10.0
    """After an unanswered command: how long its late acknowledgement may still turn up."""
    again: float = 3.0
    """After an answered arm, disarm or motor test: how long a second copy of its acknowledgement may still turn up."""


@dataclass(frozen=True, slots=True)
class Command:
    """One COMMAND_LONG. ``number`` is its MAV_CMD, ``params`` up to seven values, the rest are zero.

    With a ``frame`` (MAV_FRAME) it is a COMMAND_INT: the fifth and sixth value are whole numbers then (degrees * 1e7).
    """

    number: int
    params: Sequence[float] = ()
    idempotent: bool = False
    urgent: bool = False
    """Leave at once, also when a command of this kind is under way: that one's outcome becomes unknown."""
    patience: float | None = None
    """Seconds to wait at most for a command of this kind that is under way, and then to do the same; None: as long as
    that one takes.
    """
    frame: int | None = None
    answer: float | None = None
    """Seconds to wait for the first acknowledgement; None: as long as the client's times say."""


class Ack(NamedTuple):
    """One acknowledgement. ``progress`` is percent or None; ``doubtful`` when it may belong to an earlier command."""

    command: int
    result: int
    progress: int | None
    result_param2: int
    doubtful: bool

    @property
    def final(self) -> bool:
        """False while the vehicle reports progress."""
        return self.result != IN_PROGRESS


class _Waiter:
    """Collects the acknowledgements of one command under way."""

    def __init__(self, *, doubtful: bool, repeats: bool) -> None:
        self.doubtful = doubtful
        self.repeats = repeats
        """An emergency stop: only another one may end it."""
        self.gone = asyncio.Event()
        self.acks: asyncio.Queue[Ack | CommandOutcomeUnknown] = asyncio.Queue(_MAX_ACKS)

    def put(self, item: Ack | CommandOutcomeUnknown) -> None:
        if not self.acks.full():  # more than that is a vehicle gone mad; the time-outs end it
            self.acks.put_nowait(item)


class _Turn(asyncio.Lock):
    """The turn of one kind, and how many hold it or wait for it."""

    users = 0


_Key = tuple[int, int, int]


class CommandClient:
    """Sends commands and waits for their acknowledgements. ``on_frame`` must see every frame of the link."""

    def __init__(
        self,
        send: Callable[[MavMessage, int], int],
        *,
        dialect: Dialect,
        system: int,
        component: int,
        times: CommandTimes | None = None,
    ) -> None:
        """``send(message, system)`` returns to how many peers it left; ``system``/``component`` is who we are."""
        self.times = times or CommandTimes()
        self.sent = 0
        self.stray_acks = 0
        self._send = send
        self._dialect = dialect
        self._system = system
        self._component = component
        self._waiters: dict[_Key, list[_Waiter]] = {}
        """Who waits for acknowledgements of that kind. Two only where something urgent leaves beside what repeats."""
        self._turns: dict[_Key, _Turn] = {}
        self._doubt: dict[_Key, float] = {}

    def on_frame(self, frame: Frame) -> None:
        """Look at one frame; acknowledgements go to who waits for them."""
        if frame.msgid != COMMAND_ACK_ID:
            return
        fields = self._dialect.fields(frame)
        if fields["target_system"] not in (0, self._system) or fields["target_component"] not in (0, self._component):
            return  # the answer to another ground station
        waiters = self._waiters.get((frame.sysid, frame.compid, fields["command"]), ())
        if not waiters:
            self.stray_acks += 1
        progress = fields["progress"]
        for waiter in waiters:
            waiter.put(
                Ack(
                    fields["command"],
                    fields["result"],
                    progress if fields["result"] == IN_PROGRESS and progress <= 100 else None,
                    fields["result_param2"],
                    waiter.doubtful,
                )
            )

    def note_foreign(self, key: tuple[int, int, int]) -> None:
        """Somebody sends a command of this kind past us: ``key`` is its system, component (0: any) and MAV_CMD.

        Its acknowledgement looks like one of ours. So one that comes within the next seconds is doubtful.
        """
        system, component, number = key
        key = (system, component or 1, number)
        self._note_doubt(key, self.times.doubt)
        for waiter in self._waiters.get(key, ()):
            waiter.doubtful = True

    def say(self, command: Command, target: Target) -> int:
        """Let a command leave at once and wait for nothing; to how many peers it left. Only for what does no harm, and
        whose acknowledgement decides nothing.
        """
        self.note_foreign((target.system, target.component, command.number))
        return self._transmit(command, target, 0)

    async def run(
        self, command: Command, target: Target, *, check: Callable[[], None] | None = None
    ) -> AsyncGenerator[Ack, None]:
        """Send the command; give its acknowledgements, the last one final. ``check`` may raise just before it leaves.

        Raises NotConnected when it could not leave, CommandOutcomeUnknown when no final answer came in time or an
        urgent command of the same kind overtook it. After a doubtful acknowledgement of an urgent idempotent command
        the caller may go on to iterate: it is repeated, and further acknowledgements are given, until the time is up.
        """
        key = (target.system, target.component, command.number)
        last: Ack | None = None
        async with self._turn(key, command) as waiter:
            if check is not None:
                check()
            async with aclosing(self._exchange(command, target, waiter)) as acks:
                async for ack in acks:
                    if ack.final and not (ack.doubtful and command.idempotent):
                        last = ack
                        break
                    yield ack
        if last is not None:
            yield last  # only now, when the turn is given up: who iterates may take his time

    @asynccontextmanager
    async def _turn(self, key: _Key, command: Command) -> AsyncIterator[_Waiter]:
        turn = self._turns.setdefault(key, _Turn())
        turn.users += 1
        try:
            ordinary = not command.urgent and await self._ordinary_turn(key, turn, command.patience)
            waiter = self._stand(key, command)
            try:
                yield waiter
            finally:
                waiter.gone.set()
                standing = self._waiters[key]
                standing.remove(waiter)
                if not standing:
                    del self._waiters[key]
                if ordinary:
                    turn.release()
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[key]

    def _stand(self, key: _Key, command: Command) -> _Waiter:
        """Begin to wait for the acknowledgement. Who still stands there is overtaken: its outcome becomes unknown.

        But what is repeated until it is answered, an emergency stop, goes on beside all that is not the same.
        """
        standing = self._waiters.setdefault(key, [])
        doubtful = bool(standing) or self._doubt.get(key, 0.0) > asyncio.get_running_loop().time()
        waiter = _Waiter(doubtful=doubtful, repeats=command.urgent and command.idempotent)
        for other in standing:
            if other.repeats and not waiter.repeats:
                other.doubtful = True
            else:
                other.put(
                    CommandOutcomeUnknown(f"{self._name(command)} was overtaken by an urgent command of its kind")
                )
        standing.append(waiter)
        return waiter

    async def _ordinary_turn(self, key: _Key, turn: _Turn, patience: float | None) -> bool:
        """Wait for the others of this kind, and for an urgent one, which takes no turn: it must not be cut off.

        True when the turn is ours, False when the patience is over before.
        """
        while True:
            try:
                async with asyncio.timeout(patience):
                    await turn.acquire()
                    try:
                        while standing := self._waiters.get(key):
                            await standing[0].gone.wait()
                    except BaseException:
                        turn.release()
                        raise
            except TimeoutError:
                if not any(one.repeats for one in self._waiters.get(key, ())):
                    return False
                # a stop is under way, which does more than we do: leave it alone
            else:
                return True

    async def _exchange(self, command: Command, target: Target, waiter: _Waiter) -> AsyncGenerator[Ack, None]:
        loop = asyncio.get_running_loop()
        key = (target.system, target.component, command.number)
        began = loop.time()
        limit = began + (self.times.answer if command.answer is None else command.answer)
        repeat_at = began + self.times.repeat if command.idempotent else None
        sent = self._transmit(command, target, 0)
        if not (sent or (command.urgent and command.idempotent)):  # what is urgent goes on trying: it may come back
            raise self._not_sent(command, target)
        answered = False
        try:
            while True:
                due = limit if repeat_at is None else min(limit, repeat_at)
                try:
                    async with asyncio.timeout_at(due):
                        item = await waiter.acks.get()
                except TimeoutError:
                    if not sent and loop.time() >= limit:
                        raise self._not_sent(command, target) from None
                    if repeat_at is None or loop.time() >= limit:
                        raise self._unknown(command, target, sent, loop.time() - began) from None
                    sent += self._transmit(command, target, sent)
                    repeat_at += self.times.repeat
                    continue
                if isinstance(item, CommandOutcomeUnknown):
                    raise item
                if not item.final:
                    limit = min(loop.time() + self.times.progress, began + self.times.whole)
                    if not (command.urgent and command.idempotent):
                        repeat_at = None  # but what is urgent is said again: it may be an earlier one that goes on
                elif not (item.doubtful or waiter.doubtful):
                    answered = True
                    self._answered(key, sent)
                elif command.urgent and command.idempotent:  # a heartbeat must confirm it: it is repeated until then
                    limit = max(limit, began + self.times.answer + self.times.confirm)
                yield item
        finally:
            if sent and not answered:  # also when we are cancelled: its answer may come yet
                self._note_doubt(key, self.times.doubt)

    def _answered(self, key: _Key, sent: int) -> None:
        """A clear answer. Whether it comes once more matters for some alone. What left several times is answered as
        often: that is in doubt for as long as if it was not answered at all.
        """
        self._doubt.pop(key, None)
        if key[2] in _COPIES_MATTER:
            self._note_doubt(key, self.times.again if sent == 1 else self.times.doubt)

    def _note_doubt(self, key: _Key, seconds: float) -> None:
        now = asyncio.get_running_loop().time()
        if len(self._doubt) >= _MOST_DOUBTS:
            self._doubt = {known: until for known, until in self._doubt.items() if until > now}
        self._doubt[key] = now + seconds

    def _transmit(self, command: Command, target: Target, confirmation: int) -> int:
        params = [*command.params, *([0.0] * 7)][:7]
        fields: dict[str, Any] = {f"param{index}": value for index, value in enumerate(params, 1)}
        name = "COMMAND_LONG"
        if command.frame is None:
            fields["confirmation"] = min(confirmation, 255)
        else:
            name, fields["frame"] = "COMMAND_INT", command.frame
            for place, field in ((5, "x"), (6, "y"), (7, "z")):
                fields[field] = fields.pop(f"param{place}")
        to = {"target_system": target.system, "target_component": target.component}
        message = self._dialect.message(name, command=command.number, **to, **fields)
        left = 1 if self._send(message, target.system) else 0
        self.sent += left
        return left

    def _not_sent(self, command: Command, target: Target) -> NotConnected:
        why = f"no peer leads to system {target.system}, or the line is full"
        return NotConnected(f"{self._name(command)}: {why}; nothing was sent")

    def _unknown(self, command: Command, target: Target, sent: int, waited: float) -> CommandOutcomeUnknown:
        return CommandOutcomeUnknown(
            f"{self._name(command)} was sent to {target.system}/{target.component} {sent} time(s), and no final "
            f"acknowledgement came within {waited:.1f} s: it may or may not have been executed. It is not sent again; "
            "look at the vehicle's state before you repeat it",
            sent=sent,
        )

    def _name(self, command: Command) -> str:
        return self._dialect.enum_name("MAV_CMD", command.number)
