"""Endpoints as pymavlink writes them: ``udpin:0.0.0.0:14550``, ``udp:...`` (the same), ``udpout:192.168.1.2:14550``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from petalbus.handlers.mavlink.errors import EndpointError

_KINDS: Final = {"udp": "udpin", "udpin": "udpin", "udpout": "udpout"}
_FORMS: Final = "udp:HOST:PORT or udpin:HOST:PORT (listen there), udpout:HOST:PORT (send there)"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a link listens (``udpin``) or sends to (``udpout``)."""

    kind: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Read an endpoint. IPv6 addresses stand in brackets. Raises EndpointError naming the forms there are."""
        scheme, _, place = text.partition(":")
        kind = _KINDS.get(scheme)
        if kind is None:
            raise EndpointError(f"MAVLink endpoint {text!r}: {scheme!r} is no known kind; write {_FORMS}")
        host, separator, port_text = place.rpartition(":")
        if not separator or not host:
            raise EndpointError(f"MAVLink endpoint {text!r}: host or port is missing; write {_FORMS}")
        port = int(port_text) if port_text.isascii() and port_text.isdigit() else -1
        if not 0 <= port <= 65535 or (port == 0 and kind == "udpout"):
            raise EndpointError(f"MAVLink endpoint {text!r}: port {port_text!r} is not a number from 1 to 65535")
        return cls(kind, host.removeprefix("[").removesuffix("]"), port)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.kind}:{host}:{self.port}"
