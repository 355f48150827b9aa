"""What a proxy is made from: where the bus is, who we are, and the settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyContext:
    """The same for all proxies of one process.

    ``url`` and ``bus``: the server and the bus's name. ``app``: the app id under which proxies are on the bus.
    ``data``: the data directory. ``settings``: an object with the settings as attributes. ``organization``: the
    process's OrganizationManager.
    """

    url: str
    bus: str
    app: str
    data: Path
    settings: Any
    organization: Any = None
    others: Mapping[str, Any] = field(default_factory=dict)
    """The proxies that are there already, by name."""

    def setting(self, name: str, default: Any = None) -> Any:
        """A setting; the default when there is none, or when it is empty."""
        value = getattr(self.settings, name, None)
        return default if value is None or value == "" else value
