"""Endpoints as pymavlink writes them: ``udpin:0.0.0.0:14550``, ``tcp:10.0.0.2:5760``, ``/dev/ttyACM0,57600``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from petalbus.handlers.mavlink.errors import EndpointError

_KINDS: Final = {
    "udp": "udpin",
    "udpin": "udpin",
    "udpout": "udpout",
    "udpbcast": "udpbcast",
    "tcp": "tcp",
    "tcpin": "tcpin",
    "serial": "serial",
}
_LISTENING: Final = ("udpin", "tcpin")
_FORMS: Final = (
    "udp:HOST:PORT or udpin:HOST:PORT (listen there), udpout:HOST:PORT (send there), udpbcast:ADDRESS:PORT "
    "(broadcast there), tcp:HOST:PORT (connect to it), tcpin:HOST:PORT (let others connect), "
    "serial:/dev/NAME:BAUD or /dev/NAME,BAUD (a serial port); several ones with commas between them"
)
_DEFAULT_BAUD: Final = 57600
_BAUDS: Final = (
    1200, 2400, 4800, 9600, 14400, 19200, 28800, 38400, 57600, 76800, 100000, 111100, 115200, 128000, 230400,
    250000, 256000, 400000, 460800, 500000, 576000, 625000, 921600, 1000000, 1152000, 1500000, 2000000, 2500000,
    3000000, 3500000, 4000000,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One wire of a link: ``kind``, and ``host`` and ``port``, or ``device`` and ``baud`` for ``serial``."""

    kind: str
    """udpin, udpout, udpbcast, tcp, tcpin or serial."""
    host: str = ""
    port: int = 0
    device: str = ""
    """The path of a serial port."""
    baud: int = 0
    """Its speed in bits a second."""

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Read one endpoint. IPv6 addresses stand in brackets. Raises EndpointError naming the forms there are."""
        if text.startswith("/"):
            return cls._serial(text, text)
        scheme, _, place = text.partition(":")
        kind = _KINDS.get(scheme)
        if kind is None:
            raise EndpointError(f"MAVLink endpoint {text!r}: {scheme!r} is no known kind; write {_FORMS}")
        if kind == "serial":
            return cls._serial(text, place)
        host, separator, port_text = place.rpartition(":")
        if not separator or not host:
            raise EndpointError(f"MAVLink endpoint {text!r}: host or port is missing; write {_FORMS}")
        port = int(port_text) if _is_number(port_text) else -1
        if not 0 <= port <= 65535 or (port == 0 and kind not in _LISTENING):
            raise EndpointError(f"MAVLink endpoint {text!r}: port {port_text!r} is not a number from 1 to 65535")
        return cls(kind, host.removeprefix("[").removesuffix("]"), port)

    @classmethod
    def _serial(cls, text: str, place: str) -> Endpoint:
        """``place`` is DEVICE, DEVICE,BAUD or DEVICE:BAUD; names below /dev/serial hold colons themselves."""
        device, separator, baud_text = place.rpartition(",")
        if not separator:
            device, separator, baud_text = place.rpartition(":")
            if not separator or (device.startswith("/dev/serial/") and not _is_number(baud_text)):
                device, separator = place, ""
        if not device.startswith("/"):
            raise EndpointError(
                f"MAVLink endpoint {text!r}: the device is missing or does not begin with /; write {_FORMS}"
            )
        baud = _DEFAULT_BAUD if not separator else int(baud_text) if _is_number(baud_text) else -1
        if baud not in _BAUDS:
            rates = ", ".join(map(str, _BAUDS))
            raise EndpointError(f"MAVLink endpoint {text!r}: {baud_text!r} is no baud rate; there are {rates}")
        return cls("serial", device=device, baud=baud)

    def __str__(self) -> str:
        if self.kind == "serial":
            return f"serial:{self.device}:{self.baud}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.kind}:{host}:{self.port}"


def parse_endpoints(text: str) -> tuple[Endpoint, ...]:
    """Read endpoints with commas between them, at least one.

    The comma before a baud rate (``/dev/ttyACM0,57600``) is told from the others by the digits that follow it.
    Raises EndpointError, also when one stands there twice.
    """
    parts: list[str] = []
    for piece in (piece.strip() for piece in text.split(",")):
        if parts and _is_number(piece) and "/" in parts[-1]:
            parts[-1] += "," + piece
        else:
            parts.append(piece)
    endpoints = tuple(Endpoint.parse(part) for part in parts)
    places = [endpoint.device or endpoint for endpoint in endpoints]
    if len(set(places)) != len(places):
        raise EndpointError(f"MAVLink endpoints {text!r}: one of them stands there twice")
    return endpoints


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9
