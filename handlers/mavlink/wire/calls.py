"""Conversations with a vehicle: a procedure says which messages it expects, sends, and waits for what comes.

async with calls of one link: ``with calls.listen({MISSION_REQUEST_INT}, system) as inbox: calls.send(...)``, then
``await inbox.get(seconds)``. Who listens first and sends then misses no answer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from typing import Any, Final

from petalbus.handlers.mavlink.errors import NotConnected
from petalbus.handlers.mavlink.wire.dialect import Dialect, MavMessage
from petalbus.handlers.mavlink.wire.framing import Frame

AUTOPILOT: Final = 1
_MOST_WAITING: Final = 4096


class Operation:
    """What one operation sends to a vehicle, of several frames.

    Once something of it left, a frame for which a wire has no room is lost like one that is lost in the air: the
    operation's timers repeat it. That nobody is there would then be the wrong thing to say.
    """

    def __init__(self, system: int) -> None:
        """``system``: the vehicle's."""
        self.system = system
        self.begun = False
        """Something of it left."""

    def note(self, peers: int, what: str) -> None:
        """``what`` left to so many peers. Raises NotConnected when none, and nothing left before either."""
        if peers:
            self.begun = True
        elif not self.begun:
            raise NotConnected(f"no peer leads to system {self.system}, or none has room; {what} was not sent")


class Inbox:
    """What came for one conversation, in its order. When nobody reads it the oldest goes."""

    def __init__(self, msgids: AbstractSet[int], system: int, component: int | None, most: int) -> None:
        self.msgids = msgids
        self._system = system
        self._component = component
        self._waiting: deque[Frame] = deque(maxlen=most)
        self._arrived = asyncio.Event()

    def put(self, frame: Frame) -> None:
        """Called with each frame of the link that has one of the ids."""
        if frame.sysid == self._system and self._component in (None, frame.compid):
            self._waiting.append(frame)
            self._arrived.set()

    def take(self) -> Frame | None:
        """The next frame that is there already."""
        return self._waiting.popleft() if self._waiting else None

    def clear(self) -> None:
        """Forget what is there."""
        self._waiting.clear()

    async def get(self, seconds: float) -> Frame | None:
        """The next frame; None when none comes within ``seconds``."""
        if not self._waiting and seconds > 0:
            self._arrived.clear()
            try:
                async with asyncio.timeout(seconds):
                    await self._arrived.wait()
            except TimeoutError:
                return None
        return self.take()


class Calls:
    """All conversations over one link. ``on_frames`` must see every frame of it."""

    def __init__(
        self,
        send: Callable[[MavMessage, int], int],
        send_payload: Callable[[int, bytes, int], int],
        *,
        dialect: Dialect,
        system: int,
        component: int,
    ) -> None:
        """``send(message, system)`` and ``send_payload(msgid, payload, system)`` return to how many peers it left;
        ``system``/``component`` is who we are.
        """
        self.dialect = dialect
        self.own = system, component
        self._send = send
        self._send_payload = send_payload
        self._inboxes: dict[int, list[Inbox]] = {}

    def on_frames(self, frames: Sequence[Frame]) -> None:
        """Look at what came; costs nothing while nobody listens."""
        inboxes = self._inboxes
        if not inboxes:
            return
        for frame in frames:
            for inbox in inboxes.get(frame.msgid, ()):
                inbox.put(frame)

    @contextmanager
    def listen(
        self, msgids: AbstractSet[int], system: int, *, component: int | None = AUTOPILOT, most: int = _MOST_WAITING
    ) -> Iterator[Inbox]:
        """Get the messages with these ids from a component of a system (None: from all of them)."""
        inbox = Inbox(msgids, system, component, most)
        for msgid in msgids:
            self._inboxes.setdefault(msgid, []).append(inbox)
        try:
            yield inbox
        finally:
            for msgid in msgids:
                self._inboxes[msgid].remove(inbox)
                if not self._inboxes[msgid]:
                    del self._inboxes[msgid]

    def send(self, name: str, system: int, *, part_of: Operation | None = None, **fields: Any) -> None:
        """Send a message by its name and fields. Raises NotConnected when it did not leave, see ``Operation``."""
        peers = self._send(self.dialect.message(name, **fields), system)
        (part_of or Operation(system)).note(peers, name)

    def send_payload(self, msgid: int, payload: bytes, system: int, *, part_of: Operation | None = None) -> None:
        """Send a payload as it is. Raises NotConnected when it did not leave, see ``Operation``."""
        peers = self._send_payload(msgid, payload, system)
        (part_of or Operation(system)).note(peers, f"message {msgid}")

    def is_for_us(self, system: int, component: int) -> bool:
        """Whether a message to this target means us (0 means everybody)."""
        return system in (0, self.own[0]) and component in (0, self.own[1])
