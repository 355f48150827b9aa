"""What can be set about HTTP, in one object that the daemon and a petal's own process share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOptions:
    """Times are seconds, sizes bytes. ``port`` 0: any free one. ``root``: where ``static/<petal>`` may lie.

    ``body_limit`` holds for every request; ``upload_limit`` for routes that take an ``UploadFile``, which is written to
    the disk as it arrives. ``handler_timeout``: what one handler may take until its answer (not its streaming).
    """

    enabled: bool = True
    host: str = "127.0.0.1"
    port: int = 9000
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    root: Path | None = None
    body_limit: int = 16 * MIB
    upload_limit: int = 2048 * MIB + MIB
    handler_timeout: float = 300.0
    petal_requests: int = 64
    petal_threads: int = 16
    petal_websockets: int = 64
    connections: int = 512
    websocket_message: int = MIB
    websocket_ping: float = 20.0
    head_timeout: float = 10.0
    body_timeout: float = 30.0
    write_timeout: float = 30.0
    keep_alive: int = 15

    @classmethod
    def of(cls, settings: Any) -> HttpOptions:
        """Read them from the settings; what a settings object does not have keeps its default here."""
        names = {
            "enabled": "http_enabled",
            "host": "http_host",
            "port": "http_port",
            "body_limit": "http_body_limit",
            "upload_limit": "http_upload_limit",
            "petal_requests": "http_petal_requests",
            "petal_websockets": "http_petal_websockets",
            "handler_timeout": "petals_handler_timeout",
            "root": "petals_root",
        }
        found = {ours: getattr(settings, theirs, None) for ours, theirs in names.items()}
        given: dict[str, Any] = {ours: value for ours, value in found.items() if value is not None}
        if "root" in given:
            given["root"] = Path(given["root"])  # it may have come as text, from another process
        return cls(
            **given,
            allowed_hosts=words(getattr(settings, "http_allowed_hosts", ())),
            allowed_origins=words(getattr(settings, "http_allowed_origins", ())),
        )


def words(given: str | Iterable[str] | None) -> tuple[str, ...]:
    """A comma list or a list of texts as texts without blanks, none of them empty."""
    if given is None:
        return ()
    parts = given.split(",") if isinstance(given, str) else given
    return tuple(word.strip() for word in parts if word.strip())


def is_loopback(host: str) -> bool:
    """True for ``localhost`` and for loopback addresses."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost":
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False
