"""Several wires below one link: a radio and a ground station's network, a serial port and its spare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from petalbus.handlers.mavlink.wire.transport import Address, Receiver, Transport


class _Wire:
    """Receives from one wire; its addresses get the wire's number in front."""

    def __init__(self, number: int, receiver: Receiver) -> None:
        self._number = number
        self._receiver = receiver
        self.drained = receiver.drained

    def received(self, data: bytes, address: Address) -> None:
        self._receiver.received(data, (self._number, *address))

    def leaving(self, data: bytes, address: Address) -> bytes:
        return self._receiver.leaving(data, (self._number, *address))

    def closed(self, address: Address) -> None:
        self._receiver.closed((self._number, *address))


class ManyTransports:
    """Several transports as one. An address is the number of its wire (from 0), then its address there."""

    def __init__(self, transports: Sequence[Transport]) -> None:
        """Take transports that are not open yet."""
        self.transports = tuple(transports)

    @property
    def name(self) -> str:
        """The endpoints, with commas between them."""
        return ",".join(transport.name for transport in self.transports)

    def is_datagram(self, address: Address) -> bool:
        """As its wire says."""
        return self.transports[address[0]].is_datagram(address[1:])

    def channel(self, address: Address) -> int:
        """The number of its wire."""
        number: int = address[0]
        return number

    def targets(self, route: Address | None, speaking: Sequence[Address]) -> Sequence[Address]:
        """On the wire of the route; when that one is down, or all are meant, on every wire."""
        if route is not None:
            found = self._on_wire(route[0], route[1:], speaking)
            if found:
                return found
        return [where for number in range(len(self.transports)) for where in self._on_wire(number, None, speaking)]

    def _on_wire(self, number: int, route: Address | None, speaking: Sequence[Address]) -> list[Address]:
        heard = [address[1:] for address in speaking if address[0] == number]
        return [(number, *where) for where in self.transports[number].targets(route, heard)]

    def describe(self) -> list[dict[str, Any]]:
        """State and counters, an entry for each wire."""
        return [entry for transport in self.transports for entry in transport.describe()]

    async def open(self, receiver: Receiver) -> None:
        """Open all of them. Raises LinkError when one cannot be opened, and then leaves none open."""
        try:
            for number, transport in enumerate(self.transports):
                await transport.open(_Wire(number, receiver))
        except BaseException:
            await self.close()
            raise

    def send(self, data: bytes, address: Address) -> bool:
        """Send on the wire of the address; False when it was dropped."""
        return self.transports[address[0]].send(data, address[1:])

    async def close(self) -> None:
        """Close all of them."""
        for transport in self.transports:
            await transport.close()
