"""`petalbus mqtt`: the link to the broker from the terminal, on a real daemon and a real Mosquitto."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

import petalbus

from .conftest import COMMAND, Buses, Cli, Daemon
from support.broker import Mosquitto, program
from support.procs import child_environment
from support.servers import poll_until

BASE: Final = "org/ORG1/device/Instance-d1"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    """A Mosquitto for the tests of this module."""
    made = Mosquitto(tmp_path_factory.mktemp("mosquitto"))
    try:
        made.start()
        yield made
    finally:
        made.kill()


@pytest.fixture(scope="module")
def linked(broker: Mosquitto, module_buses: Buses, tmp_path_factory: pytest.TempPathFactory) -> Daemon:
    """A daemon that is connected to it, with the petal echo."""
    thing = tmp_path_factory.mktemp("thing") / "thing-parameters.json"
    thing.write_text(json.dumps({"thing": {"thingName": "Instance-d1", "lastReported": {"organizationId": "ORG1"}}}))
    settings = {
        "mqtt_url": f"mqtt://127.0.0.1:{broker.port}",
        "organization_file": str(thing),
        "machine_id": "d1",
        "http_enabled": "false",
        "mqtt_rate": "5000",
        "petals_paths": "petalbus.petals.echo:EchoPetal",
    }
    daemon = module_buses.up(*(word for name, value in settings.items() for word in ("--set", f"{name}={value}")))
    daemon.ready()
    return daemon


@pytest.fixture
def mqtt(linked: Daemon, capsys: pytest.CaptureFixture[str]) -> Cli:
    """`petalbus mqtt` on it, connected."""
    cli = Cli(linked.data, capsys)
    assert cli("mqtt", "status", "--wait", "30").code == 0, linked.report()
    return cli


class Watching:
    """A `petalbus mqtt watch --json` that runs meanwhile."""

    def __init__(self, data: Path, *words: str) -> None:
        self._process = subprocess.Popen(
            [*COMMAND, "mqtt", "watch", "--json", "--data", str(data), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=child_environment(),
        )

    def end(self) -> list[dict[str, Any]]:
        """What it has printed when it has ended by itself."""
        out, err = self._process.communicate(timeout=20)
        assert (self._process.returncode, err) == (0, "")
        return [json.loads(line) for line in out.splitlines()]

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate(timeout=10)


async def publish_many(data: Path, count: int) -> None:
    async with petalbus.connect(app="many", data=data) as bus:
        for number in range(count):
            await bus.send("mqtt", "mqtt.publish", {"topic": "many/x", "payload": number})


def test_the_state_of_the_link(mqtt: Cli) -> None:
    """Connected, who we are, what is subscribed, what waits: all of the link's figures."""
    told = mqtt.json("mqtt", "status")
    assert (told["connected"], told["transport"], told["phase"], told["problem"]) == (True, "direct", "connected", None)
    assert (told["organization"], told["device"], told["told_by"]) == ("ORG1", "Instance-d1", "daemon")
    assert set(told["filters"]) == {f"{BASE}/{end}" for end in ("command/edge", "command", "response")}
    assert told["window"] > 0
    assert {"outbox", "oldest_s", "in_flight", "round_trip_ms", "since_s", "code"} <= told.keys()
    assert {"duplicates", "stored"} <= told["in"].keys()
    assert "waiting" in told["commands"]
    shown = mqtt.ok("mqtt", "status").out
    assert "link      connected for " in shown
    assert "organisation ORG1, device Instance-d1" in shown
    assert f"{BASE}/command/edge (QoS 1)" in shown
    assert "0 dead letters" in shown


def test_publishing_with_the_broker_s_receipt(mqtt: Cli, broker: Mosquitto) -> None:
    """A message is at the broker when the command ends; a refused one says why."""
    sub = (program("mosquitto_sub"), "-h", "127.0.0.1", "-p", str(broker.port), "-C", "2", "-W", "20", "-v")
    mqtt.ok("mqtt", "publish", "kept/topic", '{"n": 1}', "--retain", "--wait")
    told = mqtt.json("mqtt", "publish", "--suffix", "telemetry", "hello", "--text", "--retain", "--wait")
    assert told["reason_code"] in (0, 16)
    done = subprocess.run(
        [*sub, "-t", "kept/topic", "-t", f"{BASE}/telemetry"], capture_output=True, text=True, timeout=30, check=True
    )
    assert sorted(done.stdout.splitlines()) == ['kept/topic {"n":1}', f"{BASE}/telemetry hello"]
    refused = mqtt("mqtt", "publish", "a/#", "{}", "--wait", "--json")
    assert (refused.code, refused.error["code"]) == (1, "publish_refused")
    assert "wildcard" in refused.error["message"]
    assert mqtt.json("mqtt", "publish", "a/b", "1", "--qos", "0")["id"]
    assert mqtt("mqtt", "publish", "a/b", "1", "--qos", "0", "--wait").code == 2


def test_a_command_is_answered(mqtt: Cli) -> None:
    """By a petal, by the daemon itself, and when nobody knows it."""
    answers = mqtt.json("mqtt", "command", "echo/say", '{"text": "hi"}')
    assert [one["phase"] for one in answers] == ["ack", "result"]
    assert answers[-1]["echo"] == {"text": "hi"}
    assert mqtt.ok("mqtt", "command", "get_status").out.splitlines()[-1].startswith('result: {"success": true')
    unknown = mqtt("mqtt", "command", "nobody/knows", "--json")
    assert (unknown.code, unknown.error["code"]) == (1, "unknown_command")
    mqtt.ok("mqtt", "command", "get_status", "--id", "once")
    again = mqtt("mqtt", "command", "get_status", "--id", "once", "--json")
    assert (again.code, again.error["code"]) == (1, "duplicate_command")
    assert mqtt.json("mqtt", "command", "get_status", "--no-wait")["phase"] == "stored"


def test_watching_shows_both_ways(mqtt: Cli, broker: Mosquitto) -> None:
    """What comes in, and what goes out for it."""
    watching = Watching(mqtt.data, f"{BASE}/#", "--count", "3")
    try:
        asked = json.dumps({"command": "get_status", "messageId": "w1", "waitResponse": True})
        until = time.monotonic() + 20
        while watching._process.poll() is None and time.monotonic() < until:
            broker.publish(f"{BASE}/command", asked.replace("w1", f"w{time.monotonic_ns()}"))
            time.sleep(0.3)
        found = watching.end()
    finally:
        watching.kill()
    ways = {(one["direction"], one["topic"].removeprefix(BASE)) for one in found}
    assert {("in", "/command"), ("out", "/response")} <= ways


def test_what_was_no_message_is_listed(mqtt: Cli, broker: Mosquitto) -> None:
    """S-194: with the reason and its beginning."""
    broker.publish(f"{BASE}/command/edge", '{"command": "echo/say"')
    poll_until(lambda: mqtt.ok("mqtt", "invalid", "--json").out, "it is kept")
    (kept,) = mqtt.ok("mqtt", "invalid", "--json").objects
    assert kept["payload"] == '{"command": "echo/say"'
    assert "no JSON" in kept["reason"]
    assert "no JSON" in mqtt.ok("mqtt", "invalid").out


def test_a_link_that_is_cut_says_why(mqtt: Cli, broker: Mosquitto) -> None:
    """With exit code 4 for who waits for it; what is published is stored, and leaves later."""
    broker.kill()
    poll_until(lambda: not mqtt.json("mqtt", "status")["connected"], "it is noticed")
    told = mqtt("mqtt", "status", "--wait", "0.2", "--json")
    assert (told.code, told.error["code"]) == (4, "not_connected")
    late = mqtt("mqtt", "publish", "later/x", "{}", "--wait", "--timeout", "0.3", "--json")
    assert (late.code, late.error["code"]) == (4, "not_confirmed")
    asyncio.run(publish_many(mqtt.data, 600))
    told = mqtt.json("mqtt", "status")
    assert told["outbox"] >= 601, "also what the link has not taken into its hands"
    assert told["oldest_s"] > 0.3
    shown = mqtt.ok("mqtt", "status").out
    assert "NOT CONNECTED" in shown
    assert "problem   " in shown
    broker.start()
    assert mqtt("mqtt", "status", "--wait", "30").code == 0
    poll_until(lambda: mqtt.json("mqtt", "status")["outbox"] == 0, "it has left")


def test_of_a_daemon_that_hangs_the_link_s_last_word_is_shown(linked: Daemon, mqtt: Cli) -> None:
    """The hash that the link keeps; a command then has no response, and is told so."""
    linked.signal(signal.SIGSTOP)
    try:
        told = mqtt.json("mqtt", "status")
        assert (told["told_by"], told["organization"], told["transport"]) == ("link", "ORG1", "direct")
        lost = mqtt("mqtt", "command", "get_status", "--timeout", "0.3", "--json")
        assert (lost.code, lost.error["code"]) == (4, "no_response")
    finally:
        linked.signal(signal.SIGCONT)


def test_a_link_that_is_switched_off(buses: Buses, cli_on: Callable[[Path], Cli]) -> None:
    """It says so; nothing piles up."""
    daemon = buses.up("--set", "mqtt_transport=off", "--set", "http_enabled=false")
    daemon.ready()
    cli = cli_on(daemon.data)
    poll_until(lambda: cli("mqtt", "status").code == 0, "it is there")
    assert cli.json("mqtt", "status")["problem"] == "off"
    refused = cli("mqtt", "publish", "a/b", "{}", "--wait", "--json")
    assert (refused.code, refused.error["code"]) == (1, "publish_refused")
    assert "switched off" in refused.error["message"]
