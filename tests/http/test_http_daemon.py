"""HTTP as a part of the daemon: ready without it, a port that is taken, a stop in order."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from cli.conftest import Buses, Cli, Daemon

ANY_PORT = ("--set", "http_port=0")


@pytest.fixture
def buses() -> Iterator[Buses]:
    """Starts daemons; none survives the test."""
    started = Buses()
    yield started
    started.close()


def get(url: str, **options: str) -> httpx.Response:
    return httpx.get(url, trust_env=False, timeout=10, headers=options)


def running(daemon: Daemon) -> dict[str, object]:
    told: dict[str, object] = json.loads(Path(daemon.data, "bus.json").read_text())
    return told


def test_it_takes_its_port_before_ready_and_answers_after(buses: Buses, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever calls as soon as the daemon is ready waits a moment, and is answered."""
    daemon = buses.up(*ANY_PORT)
    ready = daemon.ready()
    assert ready["http"].startswith("http://127.0.0.1:")
    health = get(f"{ready['http']}/health").json()
    assert (health["status"], health["bus"], health["not_running"]) == ("healthy", "petalbus", [])
    assert daemon.event("http_ready")["url"] == ready["http"]
    assert running(daemon)["http"] == ready["http"]
    assert get(f"{ready['http']}/health", host="evil.example").status_code == 403
    assert set(get(f"{ready['http']}/petals/none/x").json()["petals"]) <= {"echo", "vehicle-status"}, "those that ship"
    answer = Cli(daemon.data, capsys).json("request", "petalbus", "status_request", '{"fields": ["parts"]}')
    http = answer["data"]["parts"]["http"]
    assert (http["state"], http["statistics"]["url"]) == ("running", ready["http"])
    assert http["statistics"]["host_refused"] == 1
    assert daemon.stop() == 0


def test_a_port_that_is_taken_is_told_and_tried_again_while_the_bus_works(buses: Buses) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        daemon = buses.up("--set", f"http_port={port}")
        assert daemon.ready()["http"] is None
        failed = daemon.event("part_failed")
        assert failed["part"] == "http"
        assert f"cannot listen at 127.0.0.1:{port}: Address already in use" in failed["error"]
    assert daemon.event("http_ready")["url"] == f"http://127.0.0.1:{port}"
    assert get(f"http://127.0.0.1:{port}/health").json()["status"] == "healthy"
    assert running(daemon)["http"] == f"http://127.0.0.1:{port}"
    assert daemon.stop() == 0


def test_a_stop_answers_what_was_asked_and_leaves_at_once(buses: Buses) -> None:
    """A connection that only stands open holds nobody up."""
    daemon = buses.up(*ANY_PORT)
    url = daemon.ready()["http"]
    daemon.event("http_ready")
    port = int(url.rpartition(":")[2])
    with (
        ThreadPoolExecutor(1) as threads,
        socket.create_connection(("127.0.0.1", port)),
        httpx.Client(trust_env=False) as client,
    ):
        assert client.get(f"{url}/health").status_code == 200
        began = time.monotonic()
        daemon.signal(signal.SIGTERM)
        assert threads.submit(daemon.wait).result(20) == 0
        assert time.monotonic() - began < 3
    assert not Path(daemon.data, "bus.json").exists()
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))


def test_switched_off_there_is_no_port(buses: Buses) -> None:
    daemon = buses.up("--set", "http_enabled=false")
    assert daemon.ready()["http"] is None
    assert "http" not in [event.get("part") for event in daemon.events]
    assert daemon.stop() == 0


def test_origins_come_from_the_file_that_installations_have(buses: Buses) -> None:
    """config.json: allowed_origins, but never all of them."""
    data = buses.directory()
    data.mkdir(parents=True)
    page = "https://ground.example"
    Path(data, "config.json").write_text(json.dumps({"allowed_origins": [page, "*"]}))
    daemon = buses.up(*ANY_PORT, data=data)
    url = daemon.ready()["http"]
    assert get(f"{url}/health", origin=page).headers["access-control-allow-origin"] == page
    assert "access-control-allow-origin" not in get(f"{url}/health", origin="https://evil.example").headers
    assert daemon.stop() == 0
    assert any("origin * is ignored" in str(line) for line in daemon.log)
