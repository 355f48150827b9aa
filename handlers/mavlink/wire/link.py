"""One MAVLink link: a transport, a framer for each peer on it, and one sender identity."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Final, Self

from petalbus.handlers.mavlink.wire.dialect import Dialect, MavMessage, Packer, load_dialect
from petalbus.handlers.mavlink.wire.framing import MARKER_V2, Frame, Framer
from petalbus.handlers.mavlink.wire.outbox import numbered
from petalbus.handlers.mavlink.wire.routes import Heard, Routes, component_meant
from petalbus.handlers.mavlink.wire.signing import Signer, Verdict
from petalbus.handlers.mavlink.wire.transport import Address, Transport, open_transport

log = logging.getLogger(__name__)

FrameSink = Callable[[Sequence[Frame], int], None]
"""Gets the frames of one draining, and the boot clock (ns) at which it happened. Must not block."""

_MAX_PEERS: Final = 16
_PEER_SILENCE_S: Final = 60.0
_INCOMPLETE_DATAGRAM_S: Final = 0.1
_INCOMPLETE_STREAM_S: Final = 2.0  # a stream may stand still in the middle of a frame, as TCP does after a loss


class _Peer:
    """One other end."""

    __slots__ = ("behind", "datagrams", "framer", "heard", "senders", "speaks", "timer")

    def __init__(self, framer: Framer, now: float, senders: Heard, *, datagrams: bool) -> None:
        self.framer = framer
        self.senders = senders
        self.datagrams = datagrams
        self.heard = now
        self.speaks = False  # nothing is sent to an address that never sent an intact frame
        self.behind = False  # it has the key, but its signing clock must first hear ours
        self.timer: asyncio.TimerHandle | None = None


class Link:
    """Frames in, frames out. Use it as ``async with Link(...) as link``.

    On a listening endpoint a message goes to the peer on which its target is heard (``wire.routes`` chooses among
    several), and to every peer that speaks MAVLink when it has no target. At most 16 peers are kept; silent ones
    (60 s) make room first.

    With a ``Signer`` every frame leaves signed; what does not bear the key's signature is counted, not handed on.
    """

    def __init__(
        self,
        endpoint: str | Transport,
        *,
        on_frames: FrameSink,
        dialect: str | Dialect = "all",
        system: int = 2,
        component: int = 140,
        version: int = 2,
        rest: float = 0.005,
        signing: Signer | None = None,
    ) -> None:
        """``rest`` (seconds) is the pause between two drainings. A signer belongs to one link.

        Raises EndpointError, DialectError, ValueError.
        """
        if signing is not None and version != 2:
            raise ValueError("MAVLink 1 cannot be signed: use version 2, or no key")
        self.dialect = load_dialect(dialect) if isinstance(dialect, str) else dialect
        self.packer = Packer(self.dialect, system=system, component=component, version=version)
        self.transport: Transport = open_transport(endpoint, rest=rest) if isinstance(endpoint, str) else endpoint
        self.sent = 0
        self.unsent = 0
        self.refused_peers = 0
        self.last_frame: float | None = None
        """time.monotonic() of the last intact frame."""
        self._on_frames = on_frames
        self._peers: dict[Address, _Peer] = {}
        self._routes = Routes(system=system, component=component)
        self._numbers: dict[Address, int] = {}  # of the byte streams: the sequence number that is next
        self._batch: list[Frame] = []
        self._gone: Counter[str] = Counter()
        self._signing = signing
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            if self._signing is not None:
                await stack.enter_async_context(self._signing.kept())
            stack.push_async_callback(self.transport.close)
            await self.transport.open(self)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for peer in self._peers.values():
            if peer.timer is not None:
                peer.timer.cancel()
        await self._stack.aclose()

    @property
    def peers(self) -> list[Address]:
        """Who was heard here and speaks MAVLink."""
        return [address for address, peer in self._peers.items() if peer.speaks]

    def send(self, message: MavMessage, *, system: int | None = None) -> int:
        """Send to the system's peer, or to all; returns to how many it left (0: nobody is there). Never waits.

        Of the system's components the one that the message names is meant, the autopilot where it names none.
        """
        return self._transmit(self.packer.pack(message), system)

    def send_payload(self, msgid: int, payload: bytes, *, system: int | None = None) -> int:
        """Like ``send``, for a payload whose bytes must not be touched."""
        return self._transmit(self.packer.pack_payload(msgid, payload), system)

    def forward(self, frame: Frame, *, system: int | None = None) -> int:
        """Like ``send``, for a frame that another program made: it leaves under our identity and sequence.

        Raises ValueError when the link speaks MAVLink 1, which cannot carry the message.
        """
        return self._transmit(self.packer.repack(frame), system)

    def _transmit(self, data: bytes, system: int | None) -> int:
        targets = self._targets(data, system)
        if self._signing is None:
            left = sum(self.transport.send(data, address) for address in targets)
        else:
            left = self._transmit_signed(self._signing, data, targets)
        self.sent += left
        self.unsent += len(targets) - left
        return left

    def _targets(self, data: bytes, system: int | None) -> Sequence[Address]:
        listening = [address for address, peer in self._peers.items() if peer.speaks or peer.behind]
        routes: Sequence[Address] = ()
        if system is not None:
            msgid = int.from_bytes(data[7:10], "little") if data[0] == MARKER_V2 else data[5]
            component = component_meant(data, system, self.dialect.target_places(msgid))
            routes = self._routes.to(system, component, data, time.monotonic())
        if not routes:
            return self.transport.targets(None, listening)
        return [*dict.fromkeys(where for route in routes for where in self.transport.targets(route, listening))]

    def _transmit_signed(self, signing: Signer, data: bytes, targets: Sequence[Address]) -> int:
        """Each wire is a stream of signatures of its own: a slow one must not look like a replay.

        For the same reason a frame that may be overtaken is signed when it leaves.
        """
        signed: dict[int, bytes] = {}
        left = 0
        for address in targets:
            if not self.transport.is_datagram(address):
                left += self.transport.send(data, address)
                continue
            channel = self.transport.channel(address)
            if channel not in signed:
                signed[channel] = signing.sign(data, channel=channel)
            left += self.transport.send(signed[channel], address)
        return left

    def received(self, data: bytes, address: Address) -> None:
        """Called by the transport: one datagram, or a piece of a stream."""
        peer = self._peers.get(address) or self._new_peer(address)
        if peer is None:
            self.refused_peers += 1
            return
        framer = peer.framer
        frames = framer.feed_datagram(data) if peer.datagrams else framer.feed(data)
        if framer.pending and peer.timer is None:
            self._expect_rest(peer)
        self._take(peer, address, frames)

    def drained(self) -> None:
        """Called by the transport: hand on what came."""
        if self._batch:
            batch, self._batch = self._batch, []
            self._routes.look(batch)
            self._on_frames(batch, time.clock_gettime_ns(time.CLOCK_BOOTTIME))

    def leaving(self, data: bytes, address: Address) -> bytes:
        """Called by the transport: this frame leaves a byte stream now. It gets its number, and its signature.

        Numbers and timestamps grow in the order of leaving: a frame that was overtaken is neither lost nor a replay.
        """
        number = self._numbers.get(address, data[4] if data[0] == MARKER_V2 else data[2])
        self._numbers[address] = (number + 1) & 0xFF
        data = numbered(data, number)
        if self._signing is None:
            return data
        return self._signing.sign(data, channel=self.transport.channel(address))

    def closed(self, address: Address) -> None:
        """Called by the transport: this connection ended, and its address does not come again."""
        self._numbers.pop(address, None)
        peer = self._peers.get(address)
        if peer is not None:
            self._take(peer, address, peer.framer.flush())
            self.drained()
            self._forget(address)

    def _take(self, peer: _Peer, address: Address, frames: list[Frame]) -> None:
        proven = frames if self._signing is None else self._verified(self._signing, peer, frames)
        if self._signing is None:
            self._batch += frames
        if not proven:
            return
        peer.heard = self.last_frame = now = time.monotonic()
        if not peer.speaks:
            peer.speaks = True
            log.info("%s: MAVLink peer %s", self.transport.name, address)
        senders = peer.senders
        for frame in proven:  # for each frame that comes: no more than this
            raw = frame.raw
            senders[raw[5:7] if raw[0] == MARKER_V2 else raw[3:5]] = now

    def _verified(self, signing: Signer, peer: _Peer, frames: list[Frame]) -> list[Frame]:
        """Hand on what may pass; returns the frames from which may be learnt who is where.

        An exempt frame is none of these: whoever forges one must not draw our answers to himself.
        """
        proven: list[Frame] = []
        for frame in frames:
            verdict = signing.verify(frame)
            if verdict is Verdict.GOOD:
                proven.append(frame)
            elif verdict is Verdict.OLD:
                peer.behind = True
            if verdict in (Verdict.GOOD, Verdict.EXEMPT):
                self._batch.append(frame)
        return proven

    def _expect_rest(self, peer: _Peer) -> None:
        """An incomplete frame whose rest does not come is damage; intact frames may lie inside what it claims."""
        seen = peer.framer.counters.bytes

        def look() -> None:
            peer.timer = None
            if not peer.framer.pending:
                return
            if peer.framer.counters.bytes != seen:
                self._expect_rest(peer)
                return
            address = next((where for where, known in self._peers.items() if known is peer), None)
            if address is not None:
                self._take(peer, address, peer.framer.flush())
                self.drained()

        patience = _INCOMPLETE_DATAGRAM_S if peer.datagrams else _INCOMPLETE_STREAM_S
        peer.timer = asyncio.get_running_loop().call_later(patience, look)

    def _new_peer(self, address: Address) -> _Peer | None:
        now = time.monotonic()
        if len(self._peers) >= _MAX_PEERS and not self._forget_silent(now):
            return None
        framer = Framer(self.dialect.crc_extras)
        peer = self._peers[address] = _Peer(
            framer, now, self._routes.heard_at(address), datagrams=self.transport.is_datagram(address)
        )
        return peer

    def _forget_silent(self, now: float) -> bool:
        address, peer = min(self._peers.items(), key=lambda item: (item[1].speaks, item[1].heard))
        if peer.speaks and now - peer.heard < _PEER_SILENCE_S:
            return False
        self._forget(address)
        return True

    def _forget(self, address: Address) -> None:
        peer = self._peers.pop(address)
        if peer.timer is not None:
            peer.timer.cancel()
        self._gone.update(peer.framer.counters.as_dict())
        self._routes.forget(address)

    def statistics(self) -> dict[str, Any]:
        """Counters since the link was opened (the framers' of all peers, what was sent), and each wire's state."""
        total = Counter(self._gone)
        for peer in self._peers.values():
            total.update(peer.framer.counters.as_dict())
        return {
            "endpoint": self.transport.name,
            "peers": len(self.peers),
            "refused_peers": self.refused_peers,
            "sent": self.sent,
            "unsent": self.unsent,
            "received": dict(total),
            "wires": self.transport.describe(),
            "signing": None if self._signing is None else self._signing.counters.as_dict(),
        }
