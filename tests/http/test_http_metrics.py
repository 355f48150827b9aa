"""`/metrics`: what every part says of itself, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cli.conftest import Buses


@pytest.fixture
def buses() -> Iterator[Buses]:
    made = Buses()
    yield made
    made.close()


def test_the_numbers_of_every_part_are_there(buses: Buses) -> None:
    """The MQTT link's and the vehicle's among them; a part that does not run says so."""
    ready = buses.up("--sim", "--set", "http_port=0", "--set", "mqtt_transport=off").ready()
    deadline = time.monotonic() + 20
    answer = httpx.get(f"{ready['http']}/metrics", timeout=20)
    while "petalbus_mavlink_published" not in answer.text and time.monotonic() < deadline:
        time.sleep(0.05)  # the link is opened in this moment
        answer = httpx.get(f"{ready['http']}/metrics", timeout=20)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    told = {family.name: family for family in text_string_to_metric_families(answer.text)}
    running = {sample.labels["part"]: sample.value for sample in told["petalbus_part_running"].samples}
    assert running["mavlink"] == 1.0
    assert {"mqtt", "http", "petals", "janitor"} <= running.keys()
    assert told["petalbus_daemon_uptime_s"].samples[0].value > 0
    assert told["petalbus_mavlink_published"].samples[0].value >= 0
    assert all(family.type == "gauge" for family in told.values())
