"""`petalbus mav` with two vehicles: all are shown, and `--system` says which one is meant."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.conftest import COMMAND, Buses, Cli

from support.procs import child_environment


@pytest.fixture
def mav(capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> Iterator[Cli]:
    """A bus with a PX4 as system 1 and an ArduPilot as system 21. A parameter is one setting more."""
    more = ("--set", request.param) if hasattr(request, "param") else ()
    buses = Buses()
    other = None
    try:
        daemon = buses.up("--sim", "--set", "http_enabled=false", *more)
        daemon.ready()
        cli = Cli(daemon.data, capsys)
        endpoint = cli("mav", "status", "--json").object["link"]["endpoint"].replace("udpin", "udpout")
        other = subprocess.Popen(
            [*COMMAND, "sim", "--", "--endpoint", endpoint, "--autopilot", "ardupilot", "--system", "21"],
            stdout=subprocess.DEVNULL,
            env=child_environment({}),
        )
        end = time.monotonic() + 20
        while len(cli("mav", "status", "--json").object["vehicles"]) < 2:
            assert time.monotonic() < end, "the second vehicle is not heard"
            time.sleep(0.1)
        yield cli
    finally:
        if other is not None:
            other.kill()
            other.wait(10)
        buses.close()


def test_two_vehicles_at_the_terminal(mav: Cli) -> None:
    shown = mav("mav", "status").out
    assert "vehicle   1 (quadrotor, PX4), heard" in shown
    assert ", the primary one\n" in shown
    assert "vehicle   21 (quadrotor, ARDUPILOTMEGA), heard" in shown
    assert "vehicle   1 " not in mav("mav", "status", "--system", "21").out
    name = {1: "COM_DISARM_LAND", 21: "SIM_DISARM_LAND"}
    assert mav("mav", "params", "set", "--system", "21", f"{name[21]}=3.5").out == f"{name[21]:<16} 3.5\n"
    assert mav("mav", "params", "get", name[1]).code == 0
    assert "SIM_DISARM_LAND" not in mav("mav", "params", "get").out
    assert mav("mav", "cmd", "arm", "--system", "21", "--json").objects[-1]["system"] == 21
    assert mav("mav", "mission", "clear", "--system", "21").code == 0
    refused = mav("mav", "cmd", "arm", "--system", "22")
    assert refused.code == 1
    assert "vehicle 22 is not heard" in refused.err
    assert "heard are 1, 21" in refused.err
    seen = mav("mav", "watch", "HEARTBEAT", "--count", "1", "--system", "21").object
    assert seen["header"]["system"] == 21


@pytest.mark.parametrize("mav", ["mavlink_target_system=21"], indirect=True)
def test_a_saved_file_tells_whose_parameters_it_holds(mav: Cli, tmp_path: Path) -> None:
    """Nobody named a system: it is the primary vehicle's id, whichever that is."""
    for more, system in (((), "21"), (("--system", "1"), "1")):
        assert mav("mav", "params", "save", str(tmp_path / "all"), *more).code == 0
        assert {line.partition("\t")[0] for line in (tmp_path / "all").read_text().splitlines()[1:]} == {system}
