"""`petalbus up`: ready, refused, stopped in order, killed and recovered. Real processes throughout."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from petalbus.daemon.paths import DataPaths
from petalbus.daemon.server.lock import is_locked
from petalbus.daemon.server.process import ProcessIdentity

from .conftest import COMMAND, Buses, Cli, Daemon, run_process
from support.procs import child_environment
from support.servers import RealServer, TlsServer, poll_until

MAX_READY_CPU_S = 1.2
MAX_RSS_KB = 80 * 1024


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    return ProcessIdentity.of(pid) is None


def parts_of(cli: Cli) -> dict[str, Any]:
    """The parts of the daemon as it tells them itself."""
    parts: dict[str, Any] = cli.json("request", "petalbus", "status_request", '{"fields":["parts"]}')["data"]["parts"]
    return parts


def nothing_left(data: Path) -> None:
    """The data directory is given back."""
    paths = DataPaths.of(data)
    assert not paths.bus_file.exists()
    assert not is_locked(paths.bus_lock)
    assert not is_locked(paths.server_lock)


def test_ready_is_told_in_one_line_for_people(buses: Buses) -> None:
    data = buses.directory()
    daemon = subprocess.Popen(
        [*COMMAND, "up", "--data", str(data)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=child_environment(),
    )
    with daemon:
        assert daemon.stdout is not None
        line = daemon.stdout.readline()
        running = json.loads(DataPaths.of(data).bus_file.read_text())
        daemon.send_signal(signal.SIGINT)
        rest, errors = daemon.communicate(timeout=20)
    seconds, pid = re.match(r"petalbus \S+ ready in (\d+\.\d+) s as process (\d+): ", line).groups()  # type: ignore[union-attr]
    assert 0 < float(seconds) < 30
    assert int(pid) == daemon.pid == running["daemon_pid"]
    assert f"data {data}; server " in line
    assert f"(process {running['server_pid']}) at unix://{data}/bus.sock" in line
    assert rest.splitlines() == ["stopping (SIGINT)", "stopped"]
    assert daemon.returncode == 0
    assert errors == ""
    nothing_left(data)


def test_ready_is_told_as_one_json_object_for_programs(buses: Buses, cli_on: Callable[[Path], Cli]) -> None:
    daemon = buses.up()
    ready = daemon.ready()
    assert ready["data"] == str(daemon.data)
    assert ready["pid"] == daemon.pid
    assert ready["url"] == f"unix://{daemon.data}/bus.sock"
    assert not gone(ready["server_pid"])
    assert ready["adopted"] is False
    assert ready["mavlink"] is None
    status = cli_on(daemon.data).json("request", "petalbus", "status_request", "{}")["data"]
    # Processor time, because the machine may be busy: on an idle one this is about the time until ready.
    assert status["cpu_s"] < MAX_READY_CPU_S
    assert status["rss_kb"] < MAX_RSS_KB
    assert status["parts"]["ingest"]["state"] == "running"
    assert status["parts"]["janitor"]["state"] == "running"
    assert cli_on(daemon.data).json("request", "petalbus", "ping", "{}")["data"]["app"] == "petalbus"


@pytest.mark.slow
@pytest.mark.alone
def test_an_idle_bus_takes_under_one_percent_of_a_core(buses: Buses) -> None:
    daemon = buses.up()
    server = daemon.ready()["server_pid"]
    daemon.event("http_ready")  # it is loaded when the bus is ready

    def ticks(pid: int) -> int:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(words[11]) + int(words[12])

    began = time.monotonic()
    before = {pid: ticks(pid) for pid in (daemon.pid, server)}
    time.sleep(8)  # the measurement itself: nothing is awaited here
    span = os.sysconf("SC_CLK_TCK") * (time.monotonic() - began)
    shares = {pid: (ticks(pid) - count) / span for pid, count in before.items()}
    assert all(share < 0.01 for share in shares.values()), f"shares of a core: {shares}"


def test_a_second_up_on_the_same_directory_is_refused(buses: Buses) -> None:
    daemon = buses.up()
    daemon.ready()
    answer = run_process("up", "--data", str(daemon.data))
    assert answer.code == 5
    assert answer.out == ""
    assert answer.err.startswith(f"petalbus: a bus already runs on {daemon.data} (started by process {daemon.pid});")
    assert len(answer.err.splitlines()) == 1
    assert run_process("up", "--json", "--data", str(daemon.data)).error["code"] == "data_directory_in_use"
    assert daemon.stop() == 0


def test_sigterm_stops_everything_in_order_and_leaves_no_process(buses: Buses, cli_on: Callable[[Path], Cli]) -> None:
    daemon = buses.up("--sim", "--log-level", "debug")
    ready = daemon.ready()
    sim = parts_of(cli_on(daemon.data))["sim"]["statistics"]["pid"]
    assert daemon.stop() == 0
    told = [event for event in daemon.events if event["event"] != "http_ready"]
    assert [event["event"] for event in told] == ["ready", "stopping", "stopped"]
    assert told[1]["signal"] == "SIGTERM"
    stopped = [line["part"] for line in daemon.log if line.get("event") == "stopped"]
    assert stopped == ["http", "petals", "mavlink", "mqtt", "sim", "ingest", "janitor", "plain-keys", "pubsub"]
    assert gone(sim)
    assert gone(ready["server_pid"])
    nothing_left(daemon.data)
    problems = [line for line in daemon.log if line.get("level") not in ("debug", "info")]
    assert not problems


def test_sigterm_while_starting_ends_the_start_and_leaves_nothing(buses: Buses) -> None:
    data = buses.directory()
    lock = DataPaths.of(data).bus_lock
    daemon = buses.up("--sim", data=data)
    poll_until(lambda: is_locked(lock), "the daemon has begun")
    assert daemon.stop() == 0
    assert "stopped" in [event["event"] for event in daemon.events]
    nothing_left(data)


def test_kill_9_of_the_daemon_then_up_recovers_with_nothing_lost(buses: Buses, cli_on: Callable[[Path], Cli]) -> None:
    """I1: the server goes on alone, and is adopted."""
    first = buses.up()
    server = first.ready()["server_pid"]
    cli = cli_on(first.data)
    sent = [cli.json("send", "somebody", "note", json.dumps({"number": number}))["id"] for number in range(5)]
    first.kill()
    answer = cli("send", "somebody", "note", "{}")
    assert answer.code == 3
    assert "has ended without stopping in order" in answer.err
    second = buses.up(data=first.data)
    ready = second.ready()
    assert ready["adopted"] is True
    assert ready["server_pid"] == server
    assert [record["id"] for record in cli.json("inbox", "somebody")] == sent
    assert cli.json("send", "somebody", "note", '{"number":0}', "--id", sent[0])["duplicate"] is True
    assert second.stop() == 0
    nothing_left(first.data)


def test_kill_9_of_daemon_and_server_then_up_recovers_with_nothing_lost(
    buses: Buses, cli_on: Callable[[Path], Cli]
) -> None:
    """I1: what a receipt was given for is in the server's file."""
    first = buses.up()
    server = first.ready()["server_pid"]
    cli = cli_on(first.data)
    sent = [cli.json("send", "somebody", "note", json.dumps({"number": number}))["id"] for number in range(5)]
    first.kill()
    os.kill(server, signal.SIGKILL)
    poll_until(lambda: gone(server), "the server is dead")
    second = buses.up(data=first.data)
    assert second.ready()["adopted"] is False
    assert [record["data"]["number"] for record in cli.json("inbox", "somebody")] == [0, 1, 2, 3, 4]
    assert [record["id"] for record in cli.json("inbox", "somebody")] == sent


def test_the_simulated_vehicle_ends_when_the_daemon_is_killed(buses: Buses, cli_on: Callable[[Path], Cli]) -> None:
    daemon = buses.up("--sim")
    daemon.ready()
    sim = parts_of(cli_on(daemon.data))["sim"]["statistics"]["pid"]
    daemon.kill()
    poll_until(lambda: gone(sim), "the orphaned simulator ends")


def test_a_killed_server_is_started_again_and_the_bus_goes_on(buses: Buses, cli_on: Callable[[Path], Cli]) -> None:
    daemon = buses.up()
    server = daemon.ready()["server_pid"]
    cli = cli_on(daemon.data)
    sent = cli.json("send", "somebody", "note", "{}")["id"]
    os.kill(server, signal.SIGKILL)
    again = daemon.event("server_restarted")
    assert again["server_pid"] != server
    assert json.loads(DataPaths.of(daemon.data).bus_file.read_text())["server_pid"] == again["server_pid"]
    assert cli.json("request", "petalbus", "ping", "{}", "--timeout", "20")["data"]["status"] == "ok"
    assert cli.json("inbox", "somebody")["id"] == sent
    assert daemon.stop() == 0


def test_a_server_that_keeps_dying_ends_the_daemon_and_says_so(buses: Buses) -> None:
    daemon = buses.up()
    server = daemon.ready()["server_pid"]
    for _ in range(6):
        os.kill(server, signal.SIGKILL)
        server = daemon.event("server_restarted")["server_pid"]
    os.kill(server, signal.SIGKILL)
    assert daemon.wait(timeout=40) == 1
    error = daemon.log[-1]["error"]
    assert error["code"] == "server_crash_loop"
    assert "server.log" in error["message"]
    nothing_left(daemon.data)


def test_a_part_that_dies_is_shown_and_started_again_and_the_bus_goes_on(
    buses: Buses, cli_on: Callable[[Path], Cli]
) -> None:
    daemon = buses.up("--sim")
    daemon.ready()
    cli = cli_on(daemon.data)
    os.kill(parts_of(cli)["sim"]["statistics"]["pid"], signal.SIGKILL)
    failed = daemon.event("part_failed")
    assert failed["part"] == "sim"
    assert "exit code -9" in failed["error"]
    assert cli.json("request", "petalbus", "ping", "{}")["data"]["status"] == "ok"
    poll_until(lambda: parts_of(cli)["sim"]["state"] == "running", "the simulator runs again", seconds=20)
    sim = parts_of(cli)["sim"]
    assert sim["restarts"] == 1
    assert "exit code -9" in sim["last_error"]
    assert parts_of(cli)["mavlink"]["restarts"] == 0


def test_a_second_signal_means_now(buses: Buses) -> None:
    daemon = buses.up()
    server = daemon.ready()["server_pid"]
    os.kill(server, signal.SIGSTOP)  # so that an orderly stop would have to wait for it
    daemon.signal(signal.SIGTERM)
    daemon.event("stopping")
    time.sleep(0.6)
    daemon.signal(signal.SIGINT)
    assert daemon.wait() == 1
    assert daemon.events[-1] == {"event": "killed", "signal": "SIGINT"}
    second = buses.up(data=daemon.data)
    assert second.ready()["server_pid"] == server
    assert second.stop() == 0


def test_an_order_that_comes_twice_is_one(buses: Buses) -> None:
    """As from a program that signals us and our process group: it stops in order, and its server with it."""
    daemon = buses.up()
    server = daemon.ready()["server_pid"]
    daemon.signal(signal.SIGTERM)
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0
    assert not Path(f"/proc/{server}").exists()


def test_an_existing_server_is_used_and_left_running(
    buses: Buses, server: RealServer, bus_name: str, cli_on: Callable[[Path], Cli]
) -> None:
    daemon = buses.up("--redis", server.url, "--set", f"bus={bus_name}")
    ready = daemon.ready()
    assert (ready["url"], ready["server_pid"], ready["bus"]) == (server.url, None, bus_name)
    assert cli_on(daemon.data).json("request", "petalbus", "ping", "{}")["data"]["status"] == "ok"
    assert daemon.stop() == 0
    assert server.command("PING")
    assert server.command("KEYS", f"{{{bus_name}}}:*")
    nothing_left(daemon.data)


def test_an_existing_server_over_tls_with_a_user(
    buses: Buses, tls_server: TlsServer, bus_name: str, cli_on: Callable[[Path], Cli]
) -> None:
    url = f"rediss://{tls_server.username}:{tls_server.password}@{tls_server.host}:{tls_server.tls_port}"
    daemon = buses.up("--redis", f"{url}?ca={tls_server.ca}", "--set", f"bus={bus_name}")
    assert tls_server.password not in daemon.ready()["url"]
    assert cli_on(daemon.data).json("request", "petalbus", "ping", "{}")["data"]["status"] == "ok"
    assert daemon.stop() == 0
    assert tls_server.password not in json.dumps(daemon.log)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--redis", "redis://127.0.0.1:1"], 3, "redis://127.0.0.1:1 cannot be reached"),
        (["--redis", "http://user:secret@host"], 2, "http://user:***@host"),
        (["--set", "server=/bin/true"], 1, "/bin/true"),
        (["--mavlink", "pigeon:/dev/x"], 2, "udpin:HOST:PORT"),
        (["--sim", "--mavlink", "udpin:127.0.0.1:14550"], 2, "exclude each other"),
        (["--set", "memry_mb=9"], 2, "did you mean 'memory_mb'"),
        (["--log-level", "loud"], 2, "log_level = 'loud' (from the command line)"),
        (["--config", "/nowhere.toml"], 2, "/nowhere.toml"),
        (["--nonsense"], 2, "--nonsense"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(buses: Buses, options: list[str], code: int, words: str) -> None:
    data = buses.directory()
    answer = run_process("up", "--data", str(data), *options)
    assert (answer.code, answer.out) == (code, ""), answer
    assert words in answer.err
    assert len(answer.err.splitlines()) == 1
    nothing_left(data)


def test_a_data_directory_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    answer = run_process("up", "--json", "--data", str(tmp_path / "file" / "data"))
    assert answer.code == 1
    assert answer.error["code"] == "data_directory"
    assert "--data DIR" in answer.error["message"]


def test_a_mavlink_port_that_is_taken_is_tried_again_and_the_bus_is_ready(
    buses: Buses, cli_on: Callable[[Path], Cli]
) -> None:
    first = buses.up("--sim")
    endpoint = first.ready()["mavlink"]
    second = buses.up("--mavlink", endpoint)
    assert second.event("part_failed")["part"] == "mavlink"
    ready = second.ready()
    assert ready["vehicle_heard"] is False
    assert "using the port" in parts_of(cli_on(second.data))["mavlink"]["last_error"]
    assert first.stop() == 0
    poll_until(
        lambda: parts_of(cli_on(second.data))["mavlink"]["state"] == "running", "the port is free now", seconds=30
    )
    assert second.stop() == 0


def test_the_default_data_directory_needs_no_option(buses: Buses) -> None:
    state = buses.directory()
    environment = {"XDG_STATE_HOME": str(state)}
    daemon = Daemon(state / "petalbus", XDG_STATE_HOME=str(state))
    try:
        daemon.ready()
        answer = run_process("request", "petalbus", "ping", "{}", "--json", **environment)
        assert answer.object["data"]["status"] == "ok"
        by_name = run_process("request", "petalbus", "ping", "{}", "--json", PETALBUS_DATA=str(state / "petalbus"))
        assert by_name.code == 0
        assert daemon.stop() == 0
    finally:
        daemon.close()
