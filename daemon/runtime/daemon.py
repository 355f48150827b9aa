"""The daemon: what `petalbus up` runs, from taking the data directory to giving it back.

Up:    lock -> server -> simulated vehicle -> bus (app "petalbus") -> services -> MAVLink handler -> port -> bus.json
       -> ready -> HTTP, petals
Down:  bus.json -> HTTP -> petals -> MAVLink handler -> simulated vehicle -> services -> bus -> server -> lock
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog

from petalbus._version import __version__
from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.options import BusOptions
from petalbus.daemon.bus.url import parse
from petalbus.daemon.config import Settings
from petalbus.daemon.http.part import HttpPart
from petalbus.daemon.paths import DataPaths
from petalbus.daemon.petals.control import answer_petals
from petalbus.daemon.runtime.answers import answer
from petalbus.daemon.runtime.bucket import bucket_part, is_configured
from petalbus.daemon.runtime.bucket_http import BucketRoutes
from petalbus.daemon.runtime.built_in import BuiltIns
from petalbus.daemon.runtime.database import CloudTables
from petalbus.daemon.runtime.database import is_configured as has_tables
from petalbus.daemon.runtime.loop import run_to_its_end
from petalbus.daemon.runtime.mqtt import MqttLink
from petalbus.daemon.runtime.parts import endpoint_of, mavlink_part, simulator_part, vehicle_heard
from petalbus.daemon.runtime.report import Report
from petalbus.daemon.runtime.services import SERVICES, prepare, service_part
from petalbus.daemon.runtime.supervisor import Kept, State, Supervisor
from petalbus.daemon.server import (
    DataLock,
    EmbeddedServer,
    RunningBus,
    ServerCrashLoop,
    announce,
    check_server,
    update,
    withdraw,
)
from petalbus.daemon.server.probe import without_password
from petalbus.daemon.server.process import ProcessIdentity
from petalbus.schemas.stamps import boot_clock_ns

if TYPE_CHECKING:
    from petalbus.daemon.petals.manager import PetalManager

APP: Final = "petalbus"
_VEHICLE_SECONDS: Final = 3.0
_SAME_SIGNAL_S: Final = 0.5
_HEARTBEAT_S: Final = 0.5

log: Final = structlog.get_logger(__name__)


def run(settings: Settings, report: Report) -> None:
    """Run a daemon until SIGINT or SIGTERM. Raises what kept it from starting, or from going on."""
    daemon = Daemon(settings, report)
    run_to_its_end(daemon.run())
    if daemon.restarts:
        report.close()
        os.environ.pop("PETALBUS_STARTED_AT", None)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  # ourselves, as we were started


class Daemon:
    """One daemon on one data directory."""

    def __init__(self, settings: Settings, report: Report) -> None:
        self._settings = settings
        self._report = report
        self._paths = DataPaths.of(settings.data)
        self._lock = DataLock(self._paths)
        self._server: EmbeddedServer | None = None
        self._server_label = ""
        self._url = ""
        self._running: RunningBus | None = None
        self._bus: Bus | None = None
        self._supervisor: Supervisor | None = None
        self.http = HttpPart(settings, health=self._health, announce=self._http_answers)
        self._petals: PetalManager | None = None
        self._built_in = BuiltIns(uptime=self._uptime, vehicles=self._vehicles, restart=self._restart)
        self._mqtt = MqttLink(
            self._connect,
            settings,
            ready=self.http.ready,
            installed=self._installed_petals,
            built_in=self._built_in.commands,
        )
        self._mqtt.include_in(self.http)
        self._cloud = CloudTables(self._connect, settings, url=lambda: self._url, ready=self.http.ready)
        self._cloud.include_in(self.http)
        self._bucket = BucketRoutes(settings, url=lambda: self._url, configured=is_configured(settings))
        self._bucket.include_in(self.http)
        self.http.include(lambda: import_module("petalbus.daemon.http.mavftp").mavftp_router(lambda: self._bus))
        self.http.include(lambda: import_module("petalbus.daemon.http.metrics").metrics_router(self.status))
        self.restarts = False
        """It ends to be started again."""
        self._since = _process_start()
        self._stop = asyncio.Event()
        self._signalled = False
        self._signalled_at = 0.0
        self._starting: asyncio.Task[Any] | None = None
        self._failure: Exception | None = None

    async def run(self) -> None:
        """Start, serve until a signal, stop in order. Raises the error that ended it otherwise."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)
        async with asyncio.TaskGroup() as tasks:
            try:
                async with AsyncExitStack() as stack:
                    await self._start(stack, tasks)
                    await self._stop.wait()
            except asyncio.CancelledError:
                if self._starting is None or not self._stop.is_set():
                    raise
                self._starting.uncancel()  # it was us: only a start is ended by cancelling it
            except Exception as error:  # noqa: BLE001  # raised again below, not wrapped into the group's own
                self._failure = self._failure or error
            left = self._supervisor.abandoned() if self._supervisor is not None else []
            if left:
                # the data directory is given back and the server stopped; only these tasks cannot be ended otherwise
                self._report.event("stopped", left_behind=left)
                self._report.close()
                os._exit(1)
        if self._failure is not None:
            raise self._failure
        self._report.event("stopped")

    async def _start(self, stack: AsyncExitStack, tasks: asyncio.TaskGroup) -> None:
        self._starting = asyncio.current_task()
        if self._signalled:
            raise asyncio.CancelledError
        settings = self._settings
        endpoint = endpoint_of(settings)
        await self._lock.acquire()
        stack.callback(self._lock.release)
        supervisor = self._supervisor = Supervisor(tasks, self._report, stop_timeout=settings.stop_timeout)
        await self._provide_server(stack, tasks)
        if settings.sim_enabled and endpoint is not None:
            # before it is needed: it takes longer to start than everything that follows
            supervisor.start("sim", simulator_part(settings, endpoint), stops=1)
            stack.push_async_callback(supervisor.stop)
        bus = self._bus = self._connect(APP)
        await prepare(bus, settings)
        answer(bus, self.status)
        answer_petals(bus, lambda: self._petals)
        await stack.enter_async_context(bus)
        await bus.listen()
        stack.push_async_callback(supervisor.stop)
        for name, make in SERVICES.items():
            supervisor.start(name, service_part(make, bus, settings), stops=2)
        if endpoint is not None:
            supervisor.start("mavlink", mavlink_part(self._connect, settings, endpoint), stops=0)
        await self._start_http(supervisor)
        supervisor.start("petals", self._run_petals, stops=-1)
        supervisor.start("mqtt", self._mqtt.run, stops=0)
        if is_configured(settings):
            supervisor.start("bucket", bucket_part(self._connect, settings, self.http.ready, self._bucket), stops=0)
        if has_tables(settings):
            supervisor.start("database", self._cloud.run, stops=0)
        pid = self._server.pid if self._server is not None else None
        self._running = announce(
            self._paths, url=self._url, bus=settings.bus, server_pid=pid, durability=bus.durability
        )
        stack.callback(withdraw, self._paths)
        heard = endpoint is not None and await vehicle_heard(
            supervisor.parts["mavlink"], within=_VEHICLE_SECONDS if settings.sim_enabled else 0
        )
        self._starting = None
        self._say_ready(endpoint, heard=heard)
        self.http.ready.set()

    async def _run_petals(self, kept: Kept) -> None:
        """The petals, once nothing is held up any more by loading them."""
        await self.http.ready.wait()
        module = await asyncio.to_thread(import_module, "petalbus.daemon.petals.manager")
        assert self._bus is not None
        manager = module.PetalManager(
            self._settings,
            data=self._paths.root,
            url=self._url,
            durability=self._bus.durability,
            connect=self._connect,
            mounts=self.http.mounts if self.http.options.enabled else None,
            report=self._report.event,
        )
        try:
            await manager.start()
            self._petals = manager
            kept.up(manager.statistics)
            await asyncio.Event().wait()
        finally:
            self._petals = None
            await manager.stop()

    async def _start_http(self, supervisor: Supervisor) -> None:
        if not self.http.options.enabled:
            return
        with contextlib.suppress(OSError):  # the part says why, and tries again
            await self.http.take_port()
        supervisor.start("http", self.http.run, stops=-2)

    async def _http_answers(self, url: str | None) -> None:
        """Say in bus.json where HTTP answers now; not any more when we are stopping, and the file is withdrawn."""
        if self._running is None or self._stop.is_set():
            return
        self._running = replace(self._running, http=url)
        await asyncio.to_thread(update, self._paths, self._running)
        if self._stop.is_set():
            withdraw(self._paths)
        elif url is not None:
            self._report.event("http_ready", url=url)

    def _health(self) -> dict[str, Any]:
        """What ``/health`` says: degraded while a part is not running, with the names of those."""
        parts = self._supervisor.parts if self._supervisor is not None else {}
        down = [name for name, kept in parts.items() if kept.state is not State.RUNNING]
        status = "degraded" if down else "healthy"
        return {"status": status, "bus": self._settings.bus, "not_running": down}

    async def _provide_server(self, stack: AsyncExitStack, tasks: asyncio.TaskGroup) -> None:
        settings = self._settings
        if settings.redis:
            address = parse(settings.redis)
            files = {"ssl_ca_certs": address.ca, "ssl_certfile": address.cert, "ssl_keyfile": address.key}
            options: dict[str, Any] = {name: path for name, path in files.items() if path is not None}
            if address.tls:
                options["ssl_check_hostname"] = address.verify
            plain = settings.redis.partition("?")[0]
            checked = await check_server(plain, options=options)
            for warning in checked.warnings:
                log.warning(warning)
            self._url, self._server_label = settings.redis, checked.label
            return
        server = EmbeddedServer(
            settings.data,
            memory_mb=settings.memory_mb,
            fsync=settings.fsync,
            binary=settings.server,
            lock=self._lock,
        )
        self._url = await server.start()
        self._server = server
        stack.push_async_callback(server.stop)
        assert server.binary is not None
        self._server_label = server.binary.label
        tasks.create_task(self._watch(server), name="petalbus.server.watch")

    async def _watch(self, server: EmbeddedServer) -> None:
        def restarted(pid: int) -> None:
            if self._running is not None:
                self._running = self._running.with_server(pid)
                update(self._paths, self._running)
            self._report.event("server_restarted", server_pid=pid, restarts=server.restarts)

        try:
            await server.supervise(on_restart=restarted)
        except ServerCrashLoop as error:
            self._failure = error
            self._end()

    def _connect(self, app: str, **more: Any) -> Bus:
        # only the embedded server is known to do what the setting says; another one is asked
        fsync = self._settings.fsync if self._server is not None else None
        # nobody else is one of these apps, so that a dead one is missed by its successor alone
        options = BusOptions(durability=fsync, beside_bus=True, **{"heartbeat": _HEARTBEAT_S, **more})
        return Bus(self._url, app=app, bus=self._settings.bus, options=options)

    def status(self) -> dict[str, Any]:
        """Everything about this daemon, for ``status_request``."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "version": __version__,
            "bus": self._settings.bus,
            "data": str(self._paths.root),
            "url": without_password(self._url),
            "pid": os.getpid(),
            "uptime_s": self._uptime(),
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "rss_kb": _resident_kb(),
            "log_lines_dropped": self._report.dropped,
            "server": self._server.statistics() if self._server is not None else {"server": self._server_label},
            "parts": self._supervisor.describe() if self._supervisor is not None else {},
            "client": self._bus.statistics() if self._bus is not None else {},
        }

    def _uptime(self) -> float:
        return (boot_clock_ns() - self._running.since) / 1e9 if self._running is not None else 0.0

    def _vehicles(self) -> list[dict[str, Any]] | None:
        """As the MAVLink handler describes them; None while that cannot be said, or none has been heard."""
        if self._supervisor is None:
            return None
        kept = self._supervisor.parts.get("mavlink")
        if kept is None:
            return []
        return kept.describe().get("statistics", {}).get("vehicles") or None

    def _installed_petals(self) -> frozenset[str] | None:
        """Names of petals that run, or are about to; None while they are being started."""
        return None if self._petals is None else self._petals.expected()

    def _restart(self) -> None:
        self._report.event("stopping", signal="restart")
        self.restarts = True
        self._end()

    def _say_ready(self, endpoint: str | None, *, heard: bool) -> None:
        server = self._server
        if endpoint is not None and self._settings.sim_enabled and not heard:
            log.warning("the simulated vehicle is not heard yet", endpoint=endpoint)
        self._report.event(
            "ready",
            version=__version__,
            data=str(self._paths.root),
            bus=self._settings.bus,
            url=without_password(self._url),
            server=self._server_label,
            server_pid=server.pid if server is not None else None,
            adopted=server is not None and server.adopted,
            pid=os.getpid(),
            mavlink=endpoint,
            sim=self._settings.sim_enabled,
            vehicle_heard=heard,
            http=self.http.url,
            ready_s=round(time.clock_gettime(time.CLOCK_BOOTTIME) - self._since, 3),
        )

    def _on_signal(self, number: signal.Signals) -> None:
        name = signal.Signals(number).name
        if self._signalled and time.monotonic() - self._signalled_at < _SAME_SIGNAL_S:
            return  # one order that came twice: to us, and to the process group that we are in
        if self._signalled:
            # The second one means now. The server goes on alone and is adopted by the next start; the simulated
            # vehicle ends with us.
            self._report.event("killed", signal=name)
            self._report.close()
            os._exit(1)
        self._signalled, self._signalled_at = True, time.monotonic()
        self._report.event("stopping", signal=name)
        self._end()

    def _end(self) -> None:
        self._stop.set()
        if self._starting is not None:
            self._starting.cancel()


def _process_start() -> float:
    """When this process began (CLOCK_BOOTTIME seconds), its interpreter's own start included.

    ``scripts/up`` becomes this program after it has installed it, and says when.
    """
    with contextlib.suppress(KeyError, ValueError):
        return float(os.environ["PETALBUS_STARTED_AT"])
    me = ProcessIdentity.of(os.getpid())
    return me.started / os.sysconf("SC_CLK_TCK") if me is not None else time.clock_gettime(time.CLOCK_BOOTTIME)


def _resident_kb() -> int:
    """Memory of this process now. (Not getrusage's: that remembers the peak of the process that started us.)"""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024
