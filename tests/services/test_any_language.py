"""The page for programs in any language: its example is run as it stands, with redis-cli and nothing of ours."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bus.clients import Clients, until
from petalbus.daemon.bus.client import Bus
from petalbus.schemas.record import Record
from petalbus.schemas.vocabulary import Status
from services.raw import dead, empty, entries, ingesting, keeping

from support.procs import ROOT, Child, Children
from support.servers import RealServer

EXAMPLE = ROOT / "docs" / "examples" / "hear_fc"
PAGE = ROOT / "docs" / "any-language.md"

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(shutil.which("redis-cli") is None, reason="redis-cli (Debian: redis-tools) is not here"),
]


class HearFc:
    """Starts the example's scripts against a bus."""

    def __init__(self, children: Children, server: RealServer, bus: str, **more: str) -> None:
        self._children = children
        self._environment = {"PETALBUS_SOCKET": server.socket_path, "PETALBUS_BUS": bus, **more}

    async def start(self, script: str, *arguments: str) -> Child:
        return await self._children.run("bash", str(EXAMPLE / script), *arguments, environment=self._environment)

    async def run(self, script: str, *arguments: str, code: int = 0) -> list[str]:
        child = await self.start(script, *arguments)
        assert await child.wait() == code, child.report()
        return child.output

    async def text(self, commands: str) -> list[str]:
        """Run commands of the page."""
        child = await self._children.run("bash", "-euc", commands, environment=self._environment)
        assert await child.wait() == 0, child.report()
        return child.output


@pytest.fixture
async def bus(clients: Clients) -> AsyncIterator[Bus]:
    """The daemon's client, with its two services at work."""
    daemon = await clients.open("petalbus")
    async with ingesting(daemon), keeping(daemon, look_every=0.05, dead_after=1.2):
        yield daemon


@pytest.fixture
def fc(children: Children, redis_server: RealServer, bus_name: str) -> HearFc:
    return HearFc(children, redis_server, bus_name)


async def vehicle_of(clients: Clients) -> list[Record]:
    """A vehicle in Python that answers; what it was told."""
    vehicle = await clients.open("vehicle")
    told: list[Record] = []

    @vehicle.on("command")
    async def handle(record: Record) -> dict[str, Any]:
        told.append(record)
        if record.data["command"] == "explode":
            raise ValueError("no")
        return {"status": "success", "command": record.data["command"], **record.data.get("parameters", {})}

    await vehicle.listen()
    return told


async def test_a_heartbeat_shows_it_online(bus: Bus, fc: HearFc) -> None:
    """S-131, S-118: online by one HINCRBY at a time, offline when it says goodbye."""
    heartbeat = await fc.start("heartbeat.sh")

    async def status(wanted: bytes) -> bool:
        return await bus.call("HGET", bus.keys.status("HEAR_FC"), "status") == wanted

    await until(lambda: status(b"online"), "HEAR_FC is online")
    assert {one.app: one.status for one in await bus.applications()}["HEAR_FC"] == "online"
    heartbeat.signal(15)  # type: ignore[arg-type]
    assert await heartbeat.wait() == 0
    assert not await bus.call("HEXISTS", bus.keys.beats, "HEAR_FC|main")
    await until(lambda: status(b"offline"), "HEAR_FC is offline")


async def test_its_telemetry_reaches_subscribers(clients: Clients, bus: Bus, fc: HearFc) -> None:
    """S-125."""
    gcs = await clients.open("gcs")
    async with gcs.subscribe("telemetry") as samples:
        await fc.run("telemetry.sh", "42", "12.5")
        sample = await anext(aiter(samples))
    assert (sample.source, sample.type) == ("HEAR_FC", "telemetry")
    assert sample.data == {"battery_level": 42, "altitude": 12.5, "system_status": "normal"}


async def test_it_commands_the_vehicle_and_waits_for_the_answer(clients: Clients, bus: Bus, fc: HearFc) -> None:
    """S-121, S-122, S-117: takeoff, and the acknowledgement as the reply."""
    told = await vehicle_of(clients)
    takeoff = '{"command":"takeoff","parameters":{"altitude":20,"speed":2.0}}'
    [answer] = await fc.run("command.sh", "vehicle", takeoff)
    assert json.loads(answer) == {"status": "success", "command": "takeoff", "altitude": 20, "speed": 2.0}
    assert told[0].priority == 3
    assert told[0].deadline is not None
    assert await bus.status(told[0].id) is Status.COMPLETED


async def test_an_error_and_a_silence_are_told_apart(clients: Clients, bus: Bus, fc: HearFc) -> None:
    """An error reply fails with its text; nobody there fails after the time allowed."""
    assert await fc.run("command.sh", "nobody", '{"command":"arm"}', "1", code=2) == []
    [refused] = await fc.run("command.sh", "nobody", '{"order":"arm"}', code=1)
    assert json.loads(refused)["error_code"] == "INVALID_RECORD"
    assert "data.command" in json.loads(refused)["message"]
    assert len(await dead(bus)) == 1


async def test_it_serves_its_inbox_in_order_of_priority(clients: Clients, bus: Bus, fc: HearFc) -> None:
    """S-105 to S-108, S-087: read through the group, most urgent first, answered, acknowledged."""
    gcs = await clients.open("gcs")
    asking = []
    for priority, order in ((1, "low"), (2, "normal"), (3, "high"), (4, "critical")):
        request = gcs.request("HEAR_FC", "command", {"command": order}, priority=priority, id=order)
        asking.append(asyncio.create_task(request, name=order))
    await gcs.send("HEAR_FC", "note", {}, priority=1, id="note")
    late = asyncio.create_task(gcs.request("HEAR_FC", "ping", {}, timeout=0.05, id="late"))
    await asyncio.gather(late, return_exceptions=True)

    async def there() -> bool:
        return sum([await bus.call("XLEN", key) for key in bus.keys.inboxes("HEAR_FC").values()]) == 6

    await until(there, "all are in the inbox")
    output = await fc.run("inbox.sh", "6")
    orders = [re.search(r"priority (\d)", line)[1] for line in output]  # type: ignore[index]
    assert orders[:3] == ["4", "3", "2"]
    replies = await asyncio.gather(*asking)
    assert all(reply.data == {"status": "success"} for reply in replies)
    await empty(bus)
    assert await bus.status("critical") is Status.COMPLETED
    assert await bus.status("late") is Status.TIMEOUT, "its deadline had passed: refused, not run"
    for key in bus.keys.inboxes("HEAR_FC").values():
        assert (await bus.call("XPENDING", key, "inbox"))[0] == 0


async def test_after_a_crash_the_same_message_comes_again_and_is_answered_once(
    clients: Clients, bus: Bus, fc: HearFc
) -> None:
    """I2 for a program without the library: its own pending entries first, and reply ids made from the message's."""
    gcs = await clients.open("gcs")
    await gcs.send("HEAR_FC", "command", {"command": "arm"}, id="m1")
    inbox = bus.keys.inbox("HEAR_FC", 2)
    await bus.call("XGROUP", "CREATE", inbox, "inbox", 0)
    # it read the message, answered, and died before it saw that it had
    await bus.call("XREADGROUP", "GROUP", "inbox", "main", "COUNT", 1, "STREAMS", inbox, ">")
    output = await fc.run("inbox.sh", "1")
    assert len(output) == 1
    await empty(bus)
    finals = [fields for _, fields in await entries(bus, bus.keys.replies("gcs")) if fields["kind"] == b"result"]
    assert [reply["id"] for reply in finals] == [b"result_m1"]
    again = ["id", "result_m1", "type", "command_response", "source", "HEAR_FC", "recipient", "gcs"]
    await bus.call("XADD", bus.keys.ingest, "*", *again, "reply_to", "m1", "kind", "result", "data", "{}")
    await empty(bus)
    finals = [fields for _, fields in await entries(bus, bus.keys.replies("gcs")) if fields["kind"] == b"result"]
    assert len(finals) == 1
    assert await dead(bus) == []


async def test_an_acl_user_with_the_rights_of_the_page_is_enough(
    clients: Clients, bus: Bus, children: Children, redis_server: RealServer
) -> None:
    """S-154: a program gets its own streams and no others."""
    [rule] = re.findall(r"^user hear_fc (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    user = f"u{bus.keys.bus}"
    words = rule.replace("{petalbus}", "{" + bus.keys.bus + "}").replace(">secret", ">pw").split()
    await bus.call("ACL", "SETUSER", user, *words)
    try:
        await vehicle_of(clients)
        fc = HearFc(children, redis_server, bus.keys.bus, PETALBUS_USER=user, REDISCLI_AUTH="pw")
        await fc.run("telemetry.sh")
        [answer] = await fc.run("command.sh", "vehicle", '{"command":"land"}')
        assert json.loads(answer)["status"] == "success"
        gcs = await clients.open("gcs")
        asking = asyncio.create_task(gcs.request("HEAR_FC", "ping", {}))
        await fc.run("inbox.sh", "1")
        assert (await asking).data["battery"] == 85
        denied = await children.run(
            *("redis-cli", "-s", redis_server.socket_path, "--user", user, "-e"),
            *("XADD", bus.keys.inbox("vehicle", 4), "*", "x", "1"),
            environment={"REDISCLI_AUTH": "pw"},
        )
        assert await denied.wait() != 0
        assert any("NOPERM" in line for line in denied.output + denied.errors)
    finally:
        await bus.call("ACL", "DELUSER", user)


def test_the_page_shows_the_scripts_as_they_are() -> None:
    """Each listing under a script's name is that script, to the letter."""
    page = PAGE.read_text(encoding="utf-8")
    shown = dict(re.findall(r"\[`(\w+\.sh)`\]\(examples/hear_fc/\w+\.sh\)[^\n]*\n+```bash\n(.*?)```", page, re.DOTALL))
    assert shown.keys() == {path.name for path in EXAMPLE.glob("*.sh")}
    for name, text in shown.items():
        assert text == (EXAMPLE / name).read_text(encoding="utf-8"), name


async def test_the_pages_commands_by_hand(clients: Clients, bus: Bus, fc: HearFc, tmp_path: Path) -> None:
    """The five commands at the top of the page, typed in a row."""
    page = PAGE.read_text(encoding="utf-8")
    by_hand = re.search(r"```sh\n(.*?)```", page, re.DOTALL)
    assert by_hand is not None
    await vehicle_of(clients)
    text = (
        by_hand[1]
        .replace("{petalbus}", "{" + bus.keys.bus + "}")
        .replace("~/.local/state/petalbus/bus.sock", '"$PETALBUS_SOCKET"')
    )
    output = await fc.text(text)
    assert "result" in output
    assert any('"status":"success"' in line for line in output)
    await empty(bus)
    assert await dead(bus) == []
    assert len(await entries(bus, bus.keys.topic("telemetry"))) == 1
