"""Which petal answers at ``/petals/<name>`` and ``/static/<name>``, changed at run time without touching the others."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from petalbus.daemon.http.answers import App, Receive, Scope, Send, refuse
from petalbus.daemon.http.calls import SERVICE_RESTART, Calls
from petalbus.daemon.http.options import HttpOptions

if TYPE_CHECKING:
    from petalbus.petals.base import Petal

PREFIXES: Final = ("/petals/", "/static/")
_NAMES_SHOWN: Final = 50


@dataclass(slots=True)
class _Away:
    """Why a petal that is known does not answer."""

    state: str
    reason: str


@dataclass(slots=True)
class _Mounted:
    app: App
    calls: Calls


class PetalMounts:
    """The petals that answer over HTTP, and those that are known and do not. Made and used on one event loop."""

    def __init__(self, options: HttpOptions | None = None) -> None:
        self.options = options or HttpOptions()
        self.changes = 0
        """Counts up with every change: what was made of the petals together must then be made anew."""
        self._mounted: dict[str, _Mounted] = {}
        self._away: dict[str, _Away] = {}
        self._refused = 0

    def mount(self, name: str, app: App) -> None:
        """Let a petal answer from now on. Raises ValueError when one of that name does already."""
        if name in self._mounted:
            raise ValueError(f"petal {name!r} is mounted already; unmount it first")
        if not name or "/" in name:
            raise ValueError(f"a petal named {name!r} cannot have an address: give it a name without slashes")
        self._away.pop(name, None)
        self._mounted[name] = _Mounted(app, Calls(websockets=self.options.petal_websockets))
        self.changes += 1

    async def mount_petal(self, petal: Petal) -> list[str]:
        """Make a started petal's app (in a thread) and mount it; returns what is wrong with single routes of it.

        Does nothing when HTTP is switched off.
        """
        if not self.options.enabled:
            return []
        app = await asyncio.to_thread(_make, petal, self.options)
        self.mount(petal.name, app)
        return list(app.problems)

    async def unmount(self, name: str, *, state: str = "stopped", reason: str = "", timeout: float = 5.0) -> None:
        """Let a petal answer no more: new requests get 503 with ``state`` and ``reason``, its websockets are closed
        with 1012, its requests have ``timeout`` seconds to finish. Nothing happens when it is not mounted.
        """
        mounted = self._mounted.pop(name, None)
        if mounted is None:
            return
        self._away[name] = _Away(state, reason)
        self.changes += 1
        await mounted.calls.drain(SERVICE_RESTART, f"petal {name} is {state}", timeout=timeout)

    def set_state(self, name: str, state: str, reason: str = "") -> None:
        """Say why a petal that is not mounted does not answer (``waiting``, ``failed``, ``disabled``, ...)."""
        if name not in self._mounted:
            self._away[name] = _Away(state, reason)

    def forget(self, name: str) -> None:
        """A petal that is not mounted is not known any more: it answers 404."""
        self._away.pop(name, None)

    def mounted(self) -> Mapping[str, App]:
        """The apps that answer now, by petal."""
        return {name: mounted.app for name, mounted in sorted(self._mounted.items())}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI app of all petals. It sees whole paths."""
        name = scope["path"].split("/", 3)[2]
        mounted = self._mounted.get(name)
        if mounted is not None:
            await mounted.calls.run(mounted.app, scope, receive, send)
            return
        self._refused += 1
        away = self._away.get(name)
        if away is None:
            known = sorted({*self._mounted, *self._away})
            text = f"there is no petal {name!r}; known petals: {', '.join(known[:_NAMES_SHOWN]) or 'none'}"
            await refuse(scope, send, 404, "unknown_petal", text, petal=name, petals=known[:_NAMES_SHOWN])
            return
        text = f"petal {name!r} is {away.state}" + (f": {away.reason}" if away.reason else "")
        retry = [(b"retry-after", b"5")]
        await refuse(scope, send, 503, "petal_unavailable", text, headers=retry, petal=name, state=away.state)

    def statistics(self) -> dict[str, Any]:
        """Counters of each mounted petal, and the state of the others."""
        told: dict[str, Any] = {}
        for name, mounted in sorted(self._mounted.items()):
            own: Mapping[str, Any] = getattr(mounted.app, "statistics", dict)()
            told[name] = {"state": "mounted", **mounted.calls.statistics(), **own}
        for name, away in sorted(self._away.items()):
            told[name] = {"state": away.state, "reason": away.reason}
        return {"refused": self._refused, "petals": told}


def _make(petal: Petal, options: HttpOptions) -> Any:
    from petalbus.daemon.http.petal_app import petal_app  # noqa: PLC0415  # FastAPI comes with it: in a thread

    return petal_app(petal, options=options)
