"""The vehicle proxy while processes die: nothing reaches the vehicle twice."""

from __future__ import annotations

import asyncio
import socket

import pytest

from mavlink.peer import Peer
from petalbus.petals.proxies.mavlink import MavLinkExternalProxy, VehicleError

from support.procs import Child, Children
from support.servers import RealServer

HANDLER = """
import asyncio, sys
import petalbus
from petalbus.handlers.mavlink import MavlinkHandler

async def main(url, name, port):
    async with petalbus.connect(url, app="vehicle", bus=name) as bus:
        async with MavlinkHandler(bus, endpoint=f"udpin:127.0.0.1:{port}"):
            print("ready", flush=True)
            await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_handler_killed_while_it_sets_is_not_repeated(
    server: RealServer, bus_name: str, children: Children
) -> None:
    """I2: nothing leaves twice. The petal is told that nobody knows the outcome."""
    port = free_udp_port()

    async def handler() -> Child:
        child = await children.code(HANDLER, server.url, bus_name, str(port))
        await child.line("ready")
        return child

    first = await handler()
    async with Peer(remote=("127.0.0.1", port)) as peer:
        beating = asyncio.create_task(beat(peer), name="test.heartbeats")
        proxy = MavLinkExternalProxy(url=server.url, bus=bus_name)
        await proxy.start()
        assert await proxy.wait_until_ready(10.0)
        setting = asyncio.create_task(proxy.set_params_bulk_lossy({"SPEED": (1.0, "REAL32")}, timeout_total=20.0))
        await peer.until(lambda: peer.of("PARAM_SET"))
        await asyncio.sleep(0.2)  # longer than it takes to note that the work has begun
        first.kill()
        sent = len(peer.of("PARAM_SET"))
        await handler()
        with pytest.raises(VehicleError) as caught:
            await setting
        beating.cancel()
        await proxy.stop()
    assert caught.value.error_code == "OUTCOME_UNKNOWN"
    assert len(peer.of("PARAM_SET")) == sent


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        end.bind(("127.0.0.1", 0))
        port: int = end.getsockname()[1]
        return port


async def beat(peer: Peer) -> None:
    while True:
        peer.heartbeat()
        await asyncio.sleep(0.2)
