"""The page about the client says what the code says: options, errors, and what it claims about clocks."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest

import petalbus
from bus.clients import Clients
from petalbus import Bus, BusOptions, Record, ReplyError
from petalbus.schemas.stamps import boot_clock_ns

from .pages import DOCS, prose, table

CLIENT = DOCS / "client.md"
PUBLIC_CALLS = [
    name
    for name, member in inspect.getmembers(Bus)
    if not name.startswith("_") and inspect.isfunction(member) and name not in ("start", "close")
]


def test_options_are_documented_with_their_defaults() -> None:
    """All of them, in the order of the code."""
    written = [(name.strip("`"), default.strip("`")) for name, default, _ in table(CLIENT, "option")]
    assert written == [(option.name, repr(option.default)) for option in dataclasses.fields(BusOptions)]


def test_errors_are_documented() -> None:
    """Every exception that the package offers."""
    offered = {
        name
        for name in petalbus.__all__
        if inspect.isclass(one := getattr(petalbus, name)) and issubclass(one, Exception)
    }
    assert {row[0].strip("`") for row in table(CLIENT, "error")} == offered - {"BusError"}
    bus_errors = [row[0].strip("`") for row in table(CLIENT, "error")][:-2]
    assert all(issubclass(getattr(petalbus, name), petalbus.BusError) for name in bus_errors)


def test_statuses_are_documented() -> None:
    written = {word for row in table(CLIENT, "status") for word in re.findall(r"`(\w+)`", row[0])}
    assert written == {str(status) for status in petalbus.Status}


@pytest.mark.parametrize("call", [petalbus.connect, Bus.send, Bus.request, Bus.on], ids=lambda call: call.__name__)
def test_arguments_are_documented(call: Callable[..., Any]) -> None:
    named = set(inspect.signature(call).parameters) - {"self"}
    assert named - set(re.findall(r"`(\w+)`", prose(CLIENT))) == set()


@pytest.mark.parametrize("name", PUBLIC_CALLS)
def test_every_call_of_the_client_is_on_the_page(name: str) -> None:
    assert re.search(rf"\b{name}\b", CLIENT.read_text()), f"Bus.{name} is not mentioned"


@pytest.mark.parametrize("boot_id", [None, "0123456789ab"], ids=["of no boot", "of an earlier boot"])
async def test_a_deadline_of_another_boot_has_passed(clients: Clients, boot_id: str | None) -> None:
    """What the page says about deadlines from before a restart: such a record is not run, and its sender is told."""
    ran: list[str] = []
    app = clients.make("app")

    @app.on("ping")
    async def ping(record: Record) -> None:
        ran.append(record.id)

    await app.start()
    gcs = await clients.open("gcs")
    now = boot_clock_ns()
    stamps = {"mono": now, "deadline": now + 60 * 10**9} | ({"boot_id": boot_id} if boot_id is not None else {})
    fields = {"id": "far", "type": "ping", "source": "gcs", "recipient": "app", "data": b"{}", "wants_reply": True}
    await gcs.send_many([Record.checked(fields | stamps)])
    with pytest.raises(ReplyError) as raised:
        await gcs.request("app", "ping", {}, id="far")
    assert raised.value.error_code == "DEADLINE_EXPIRED"
    assert ran == []
