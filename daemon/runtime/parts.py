"""The parts of a daemon beside the bus itself. What a part needs is imported when it starts, and in a thread."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import structlog

from petalbus.daemon.paths import DataPaths
from petalbus.daemon.runtime.supervisor import Kept, RunPart

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.daemon.config import Settings

_TERMINATE_SECONDS: Final = 2.0
_LISTEN_SECONDS: Final = 1.0
_VEHICLE_APP: Final = "vehicle"
_SIM_MODULE: Final = "petalbus.handlers.mavlink.sim"

log: Final = structlog.get_logger(__name__)

Connect = Callable[[str], "Bus"]
"""Makes a client of the bus for an app."""


class SimulatorEnded(Exception):
    """The simulated vehicle's process ended by itself."""

    code = "simulator_ended"


def endpoint_of(settings: Settings) -> str | None:
    """Where the vehicle is: the simulated one's port, the endpoint set, or nowhere.

    Raises EndpointError, which names the forms an endpoint may have.
    """
    if settings.sim_enabled:
        return f"udpin:127.0.0.1:{_free_udp_port()}"
    if not settings.mavlink_endpoint:
        return None
    from petalbus.handlers.mavlink.wire.endpoint import parse_endpoints  # noqa: PLC0415  # only who has a vehicle needs it

    return ",".join(map(str, parse_endpoints(settings.mavlink_endpoint)))


def mavlink_part(connect: Connect, settings: Settings, endpoint: str) -> RunPart:
    """The MAVLink handler, on a client of its own as the app ``vehicle``. Up once a command would be carried out."""

    async def run(kept: Kept) -> None:
        module = await asyncio.to_thread(import_module, "petalbus.handlers.mavlink.handler")
        read_rates = import_module("petalbus.handlers.mavlink.ingest").read_rates
        await asyncio.to_thread(
            import_module("petalbus.handlers.mavlink.wire.dialect").load_dialect, settings.mavlink_dialect
        )
        async with (
            connect(_VEHICLE_APP) as bus,
            module.MavlinkHandler(
                bus,
                endpoint=endpoint,
                options=module.MavlinkOptions(
                    source_system=settings.mavlink_source_system,
                    source_component=settings.mavlink_source_component,
                    target_system=settings.mavlink_target_system,
                    dialect=settings.mavlink_dialect,
                    heartbeat_hz=settings.mavlink_heartbeat_hz,
                    max_altitude=settings.mavlink_max_altitude,
                    transfers=DataPaths.of(settings.data).root / "transfers",
                    signing=_signer(settings),
                    rates=read_rates(settings.mavlink_rates),
                    streams=import_module("petalbus.handlers.mavlink.streams").read_streams(settings.mavlink_streams),
                    operators=frozenset(settings.mavlink_operators.replace(",", " ").split()),
                ),
            ) as handler,
        ):
            try:
                await bus.listen()
                kept.up(handler.statistics)
                await asyncio.Event().wait()
            finally:
                await bus.stop_listening()  # a command that waits for its acknowledgement: then the link closes

    return run


def simulator_part(settings: Settings, endpoint: str) -> RunPart:
    """The simulated vehicle in a process of its own, which ends with ours however ours ends."""
    command = [sys.executable, "-m", _SIM_MODULE, "--exit-with-parent"]
    command += ["--endpoint", endpoint.replace("udpin:", "udpout:", 1), "--autopilot", settings.sim_autopilot]

    async def run(kept: Kept) -> None:
        child = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            # a Ctrl-C on the terminal is for the daemon, which then ends the simulator in order
            start_new_session=True,
        )
        assert child.stdout is not None
        last = ""
        try:
            while line := await child.stdout.readline():
                last = line.decode(errors="replace").rstrip()
                log.info(last, part=kept.name)
                if not kept.is_up.is_set():
                    kept.up(lambda: {"pid": child.pid, "endpoint": endpoint})
            raise SimulatorEnded(f"the simulated vehicle ended with exit code {await child.wait()}: {last}")
        finally:
            await _end(child)

    return run


async def _end(child: asyncio.subprocess.Process) -> None:
    for stop in (child.terminate, child.kill):
        if child.returncode is not None:
            return
        with suppress(ProcessLookupError):
            stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(_TERMINATE_SECONDS):
                await child.wait()


def _signer(settings: Settings) -> Any:
    """Signs and checks frames; None where no key is set. Raises SigningError."""
    if not settings.mavlink_signing_key:
        return None
    module = import_module("petalbus.handlers.mavlink.wire.signing")
    return module.Signer(
        module.signing_key(settings.mavlink_signing_key),
        accept_unsigned=settings.mavlink_accept_unsigned,
        memory=DataPaths.of(settings.data).root / "mavlink-signing",
    )


def _free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        end.bind(("127.0.0.1", 0))
        port: int = end.getsockname()[1]
        return port


async def vehicle_heard(mavlink: Kept, *, within: float) -> bool:
    """Wait until the MAVLink handler listens (a second at most) and hears a vehicle (``within`` seconds)."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_LISTEN_SECONDS):
            await mavlink.is_up.wait()
    until = time.monotonic() + within
    while not _connected(mavlink.describe()):
        if time.monotonic() >= until:
            return False
        await asyncio.sleep(0.01)  # the handler tells frames to the bus, not to us
    return True


def _connected(described: dict[str, Any]) -> bool:
    return bool(described.get("statistics", {}).get("vehicle", {}).get("connected"))
