"""The proxies of one process, by the names that petals know, each made by its own package.

The mapping that petals get is live: a proxy that appears later is found in it. A package that this installation does
not have, or that fails, leaves its proxy out, with the reason.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from petalbus.petals.proxies.base import BaseProxy
from petalbus.petals.proxies.context import ProxyContext

PACKAGES: Final[Mapping[str, str]] = {
    "redis": "petalbus.petals.proxies.redis",
    "db": "petalbus.petals.proxies.localdb",
    "ext_mavlink": "petalbus.petals.proxies.mavlink",
    "ftp_mavlink": "petalbus.petals.proxies.mavftp",
    "cloud": "petalbus.petals.proxies.cloud",
    "bucket": "petalbus.petals.proxies.bucket",
    "mqtt": "petalbus.petals.proxies.mqtt",
}
"""Names and packages, in the order of their start. A package has ``make(context)``."""

START_SECONDS: Final = 10.0

log = logging.getLogger(__name__)


class Proxies:
    """Starts them, stops them, and tells whoever waits when one becomes ready or is not any more."""

    def __init__(self, context: ProxyContext, *, packages: Mapping[str, str] = PACKAGES) -> None:
        self._packages = packages
        self._found: dict[str, BaseProxy] = {}
        self._reasons: dict[str, str] = {}
        self._watchers: list[Callable[[], None]] = []
        self.mapping: Mapping[str, BaseProxy] = MappingProxyType(self._found)
        """By name; for petals."""
        self._context = replace(context, others=self.mapping)

    async def start(self, names: Iterable[str] | None = None) -> None:
        """Make and start those named, or all. One that fails is left out; the others start."""
        wanted = list(self._packages) if names is None else list(names)
        for name in self._packages:
            if name not in wanted:
                self._reasons[name] = "it is not enabled"
        for name in wanted:
            if name not in self._packages:
                log.warning("there is no proxy %r; known: %s", name, ", ".join(self._packages))
                self._reasons[name] = "there is no such proxy"
            elif name not in self._found:
                await self._start_one(name)

    async def stop(self) -> None:
        """Stop them all, the last first."""
        for name, proxy in reversed(list(self._found.items())):
            del self._found[name]
            self._reasons[name] = "stopped"
            try:
                async with asyncio.timeout(START_SECONDS):
                    await proxy.stop()
            except Exception:
                log.exception("proxy %s did not stop in order", name)
        self._tell()

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Call a plain function, on the loop, whenever a proxy comes, goes, becomes ready or not. Returns the end."""
        self._watchers.append(changed)
        return lambda: self._watchers.remove(changed) if changed in self._watchers else None

    def missing(self, names: Iterable[str]) -> dict[str, str]:
        """Those of the names that cannot be used now, and why."""
        found = {}
        for name in names:
            proxy = self._found.get(name)
            if proxy is None:
                found[name] = self._reasons.get(name, "there is no such proxy")
            elif not proxy.is_ready:
                found[name] = proxy.reason
        return found

    def describe(self) -> dict[str, dict[str, Any]]:
        """State of every proxy, for people."""
        told = {name: {"ready": proxy.is_ready, "reason": proxy.reason or None} for name, proxy in self._found.items()}
        told |= {name: {"ready": False, "reason": why} for name, why in self._reasons.items() if name not in told}
        return told

    async def _start_one(self, name: str) -> None:
        package = self._packages[name]
        try:
            module = await asyncio.to_thread(importlib.import_module, package)
        except ModuleNotFoundError as error:
            known = error.name is not None and package.startswith(error.name)
            self._reasons[name] = (
                "this installation has no such proxy" if known else f"it needs the package {error.name}"
            )
            log.debug("proxy %s: %s", name, self._reasons[name])
            return
        except Exception as error:
            self._reasons[name] = f"its package fails: {type(error).__name__}: {error}"
            log.exception("proxy %s cannot be loaded", name)
            return
        if not hasattr(module, "make"):  # a name to annotate with, and nothing behind it
            self._reasons[name] = "this installation has no such proxy"
            return
        try:
            proxy: BaseProxy = module.make(self._context)
            proxy.watch(self._tell)
            async with asyncio.timeout(START_SECONDS):
                await proxy.start()
        except Exception as error:
            self._reasons[name] = f"it does not start: {type(error).__name__}: {error}"
            log.exception("proxy %s does not start", name)
            return
        self._reasons.pop(name, None)
        self._found[name] = proxy
        self._tell()

    def _tell(self) -> None:
        for changed in list(self._watchers):
            changed()
