"""The process of one petal: ``python -m petalbus.daemon.petals.isolated``, started by the daemon, gone with it.

It makes its own proxies, runs the same code as the daemon does for a petal of its own, and serves the petal's HTTP on a
unix socket.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import petalbus
from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.options import BusOptions
from petalbus.daemon.petals.discovery import Found
from petalbus.daemon.petals.errors import LoadFailed
from petalbus.daemon.petals.life import InDaemon
from petalbus.daemon.petals.surroundings import Surroundings
from petalbus.daemon.petals.watchdog import Watchdog
from petalbus.daemon.petals.wire import FD_VARIABLE, MAX_LINE, read, write
from petalbus.petals.hosting import PetalNotStarted
from petalbus.schemas.convert.names import bus_app

READY_SECONDS = 10.0


class Isolated:
    """Does what the daemon says."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._surroundings: Surroundings | None = None
        self._life: InDaemon | None = None
        self._http: Any = None
        self._breaking: asyncio.Task[None] | None = None
        self._blocks = 0

    async def run(self) -> None:
        """Until the daemon says stop, or is gone."""
        told = await read(self._reader)
        if told is None:
            return
        watchdog = Watchdog({told["name"]: [told["target"].partition(":")[0].partition(".")[0]]}, self._blocked)
        watchdog.start()
        try:
            if not await self._prepare(told):
                return
            while (order := await read(self._reader)) is not None:
                if order["do"] == "start":
                    await self._start(told)
                elif order["do"] == "counters":
                    self._tell("counters", counters=self._counters())
                elif order["do"] == "stop":
                    break
        finally:
            await self._stop()
            watchdog.stop()
            self._tell("stopped")

    async def _prepare(self, told: dict[str, Any]) -> bool:
        settings = SimpleNamespace(**told["settings"])
        options = BusOptions(**told["options"])
        # the name it was found under until its own is known
        self._surroundings = Surroundings(
            url=told["url"],
            bus=told["bus"],
            app=bus_app(f"petal-app-manager.{told['name']}"),
            data=Path(told["data"]),
            settings=settings,
        )
        await self._surroundings.start(told["proxies"])
        mounts = _Mounts(Path(told["socket"]), settings) if told["http"] else None
        self._http = mounts
        self._life = InDaemon(
            Found(told["name"], told["target"], told["origin"]),
            proxies=self._surroundings.proxies.mapping,
            connect=lambda app: Bus(told["url"], app=app, bus=told["bus"], options=options),
            mounts=mounts,  # type: ignore[arg-type]  # it has the two calls that a life makes
            needs=tuple(told["needs"]),
            timeout=told["timeout"],
            failures=told["failures"],
        )
        try:
            needs = await self._life.prepare()
        except Exception as error:  # noqa: BLE001  # whatever its constructor raises is told, and ends this process
            self._complain(error, kind="load" if isinstance(error, LoadFailed) else "start")
            return False
        self._surroundings.watch_organization(self._life.organization_changed)
        self._tell("prepared", name=self._life.name, version=self._life.version, needs=list(needs))
        return True

    async def _start(self, told: dict[str, Any]) -> None:
        assert self._life is not None
        assert self._surroundings is not None
        try:
            needs = [*told["needs"], *(self._life.needs)]
            await asyncio.gather(
                *(
                    proxy.wait_until_ready(READY_SECONDS)
                    for name, proxy in self._surroundings.proxies.mapping.items()
                    if name in needs
                )
            )
            await self._life.start()
        except Exception as error:  # noqa: BLE001  # told to the daemon, which decides
            self._complain(error, kind="start")
            return
        self._breaking = asyncio.create_task(self._await_break(), name="petal-breaking")
        self._tell("running")

    async def _await_break(self) -> None:
        assert self._life is not None
        await self._life.broken.wait()
        self._tell("broken", why=self._life.why)

    async def _stop(self) -> None:
        if self._breaking is not None:
            self._breaking.cancel()
        try:
            if self._life is not None:
                await self._life.stop()
        except Exception:
            logging.getLogger("petalbus.petals").exception("the petal failed while it stopped")
        if self._surroundings is not None:
            await self._surroundings.stop()

    def _counters(self) -> dict[str, Any]:
        told = self._life.counters() if self._life is not None else {}
        told.pop("http", None)
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return {**told, "loop_blocks": self._blocks, "rss_kb": pages * os.sysconf("SC_PAGE_SIZE") // 1024}

    def _blocked(self, _petal: str, seconds: float, where: str) -> None:
        self._blocks += 1
        logging.getLogger("petalbus.petals").warning("the petal holds up its loop for %.2f s: %s", seconds, where)

    def _complain(self, error: Exception, *, kind: str) -> None:
        text = str(error) if hasattr(error, "code") else f"{type(error).__name__}: {error}"
        missing = list(error.missing) if isinstance(error, PetalNotStarted) else []
        self._tell("error", kind=kind, message=text, missing=missing)
        sys.stderr.write("".join(traceback.format_exception(error)))

    def _tell(self, event: str, **more: Any) -> None:
        write(self._writer, {"event": event, **more})


class _Mounts:
    """Serves the one petal's app on the unix socket that the daemon passes requests to."""

    def __init__(self, path: Path, settings: Any) -> None:
        from petalbus.daemon.http.options import HttpOptions  # noqa: PLC0415  # only where there is HTTP

        self.options = HttpOptions.of(settings)
        self._path = path
        self._server: Any = None

    async def mount_petal(self, petal: Any) -> list[str]:
        """Listen, and answer."""
        from petalbus.daemon.http.petal_app import petal_app  # noqa: PLC0415  # FastAPI comes with it
        from petalbus.daemon.http.server import Server, unix_listener  # noqa: PLC0415  # the same

        app = await asyncio.to_thread(petal_app, petal, options=self.options)
        listener = await asyncio.to_thread(unix_listener, self._path)
        self._server = Server(app, listener, options=self.options)
        await self._server.start()
        return list(app.problems)

    async def unmount(self, _name: str, *, state: str) -> None:  # noqa: ARG002  # the daemon's own answers say the state
        """Stop answering."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(timeout=2.0)

    def statistics(self) -> dict[str, Any]:
        """The daemon counts requests."""
        return {"petals": {}}


async def main() -> None:
    """Talk to the daemon until the end."""
    number = int(os.environ.pop(FD_VARIABLE))
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=number), limit=MAX_LINE)
    running = asyncio.current_task()
    assert running is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    try:
        await Isolated(reader, writer).run()
    except asyncio.CancelledError:
        return  # terminated: run() has stopped the petal in order
    finally:
        writer.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    petalbus.run(main())
