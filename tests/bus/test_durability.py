"""Receipts say what the server promises, not what somebody hopes. On real servers, which are configured as the embedded
one is: they are told `no` by themselves, and `everysec` is what its daemon adds (decision 8).
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import petalbus
from bus.clients import Clients, until
from petalbus.daemon.bus import durability
from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.options import BusOptions
from petalbus.daemon.paths import DataPaths
from petalbus.daemon.server import announce
from petalbus.schemas.record import Record

from support.servers import RealServer, TlsServer


async def stated(bus: Bus) -> set[str]:
    """What the receipts of a client state: of a send, its repetition, a batch and a published record."""
    record = Record(id="d-3", type="note", source=bus.app, recipient="app", data=b"{}")
    receipts = [
        await bus.send("app", "note", {}, id="d-1"),
        await bus.send("app", "note", {}, id="d-1"),
        *await bus.send_many([record]),
        await bus.publish("news", "note", {}),
    ]
    return {receipt.durability for receipt in receipts}


@pytest.mark.parametrize(
    ("append_only", "fsync", "promise"),
    [("yes", "everysec", "everysec"), ("yes", "always", "always"), ("yes", "no", "no"), ("no", "always", "memory")],
)
async def test_the_server_is_asked(
    own_clients: Clients, own_server: RealServer, append_only: str, fsync: str, promise: str
) -> None:
    """I1: without another word a receipt states the configuration that the server has when the client connects."""
    own_server.command("CONFIG", "SET", "appendonly", append_only, "appendfsync", fsync)
    for presence in (True, False):
        bus = await own_clients.open("gcs", presence=presence)
        assert await stated(bus) == {promise}
        await bus.close()


async def test_the_first_receipt_knows_it_already(clients: Clients) -> None:
    """Nobody waits for the answer, and it is there in time."""
    bus = await clients.open("gcs", presence=False)
    receipts = await asyncio.gather(*(bus.send("app", "note", {}) for _ in range(200)))
    assert {receipt.durability for receipt in receipts} == {"no"}


async def test_a_user_who_may_not_ask_promises_nothing(clients: Clients, tls_server: TlsServer) -> None:
    """CONFIG is for administrators: the bus works without it, and says that it does not know."""
    bus = await clients.open("gcs", url=tls_server.tcp_url)
    assert await stated(bus) == {durability.UNKNOWN}


async def test_an_option_is_stated_as_it_is_given(own_clients: Clients, own_server: RealServer) -> None:
    """The server is not even asked."""
    own_server.command("CONFIG", "RESETSTAT")
    bus = await own_clients.open("gcs", durability="always")
    assert await stated(bus) == {"always"}
    assert b"config|get" not in await bus.call("INFO", "commandstats")


async def test_a_server_that_came_back_otherwise_is_asked_again(own_clients: Clients, own_server: RealServer) -> None:
    """A client stays while its server is started anew with another configuration."""
    bus = await own_clients.open("gcs")
    assert await stated(bus) == {"no"}
    own_server.config = own_server.config.replace("appendfsync no\n", "appendfsync always\n")
    own_server.restart()
    await until(lambda: bus.durability == "always", "it knows")
    assert await stated(bus) == {"always"}


async def test_what_the_running_bus_says_is_taken_over(server: RealServer, data_dir: Path) -> None:
    """Found by its data directory: the daemon knows. An option of the client's own wins; an old daemon's file asks."""
    paths = DataPaths.of(data_dir)
    paths.create()
    for told, option, expected in (
        ("always", None, "always"),
        ("always", "memory", "memory"),
        (None, None, "no"),
    ):
        announce(paths, url=server.url, durability=told)
        options = BusOptions(durability=option, presence=False)
        async with petalbus.connect(app="gcs", data=data_dir, bus="durability", options=options) as bus:
            assert (await bus.publish("news", "note", {})).durability == expected


@pytest.mark.parametrize("reply", [[], None, [b"appendonly"], OSError("gone"), [b"appendonly", b"yes"]])
def test_an_answer_that_says_nothing_is_no_promise(reply: object) -> None:
    assert durability.read_answer(reply) == durability.UNKNOWN
