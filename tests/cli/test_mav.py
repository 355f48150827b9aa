"""`petalbus mav`: the vehicle from the terminal, both kinds of it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import COMMAND, Answer, Buses, Cli, Daemon
from support.procs import child_environment

LANDED = {"px4": "COM_DISARM_LAND", "ardupilot": "SIM_DISARM_LAND"}


def value_of(mav: Callable[..., Answer], name: str) -> Any:
    return mav("params", "get", name, "--json").object["value"]


def test_the_state_of_the_vehicle(mav: Callable[..., Answer], kind: str) -> None:
    end = time.monotonic() + 15
    while not {"GPS_RAW_INT", "SYS_STATUS"} <= set(mav("status", "--json").object["messages"]):
        assert time.monotonic() < end  # the rarer is sent once a second
    shown = mav("status").out
    assert "vehicle   1 (quadrotor, " + ("PX4" if kind == "px4" else "ARDUPILOTMEGA") in shown
    assert "disarmed, mode " + ("hold" if kind == "px4" else "stabilize") in shown
    assert "battery   100 %" in shown
    told = mav("status", "--json").object
    assert told["vehicle"]["connected"] is True
    assert told["link"]["received"]["frames"] > 0
    assert told["messages"]["GPS_RAW_INT"]["mavpackettype"] == "GPS_RAW_INT"


def test_parameters_are_set_saved_compared_and_loaded(mav: Callable[..., Answer], kind: str, tmp_path: Path) -> None:
    name, file = LANDED[kind], tmp_path / "all.params"
    everything = mav("params", "get", "--json").objects
    assert len(everything) > 20
    assert mav("params", "set", f"{name}=3.5").out == f"{name:<16} 3.5\n"
    assert mav("params", "save", str(file)).out.startswith(f"{len(everything)} parameters saved")
    assert mav("params", "diff", str(file)).code == 0
    mav("params", "set", f"{name}=2")
    differing = mav("params", "diff", str(file), "--json")
    assert (differing.code, differing.objects) == (1, [{"name": name, "file": 3.5, "vehicle": 2.0}])
    dry = mav("params", "load", str(file), "--dry-run")
    assert f"1 of {len(everything)} parameters differ" in dry.out
    assert value_of(mav, name) == 2.0
    assert mav("params", "load", str(file)).code == 0
    assert value_of(mav, name) == 3.5
    assert mav("params", "diff", str(file)).code == 0


def test_ardupilots_files_are_read_too(mav: Callable[..., Answer], kind: str, tmp_path: Path) -> None:
    file = tmp_path / "one.param"
    file.write_text(f"# comment\n\n{LANDED[kind]},4.25\n")
    assert mav("params", "load", str(file)).code == 0
    assert value_of(mav, LANDED[kind]) == 4.25


@pytest.mark.parametrize("text", ["NAME", "NAME,x", "1 1 NAME 2", "1\t1\tNAME\t2\tx"])
def test_a_file_that_makes_no_sense_is_refused_with_its_line(
    mav: Callable[..., Answer], tmp_path: Path, text: str
) -> None:
    file = tmp_path / "bad.params"
    file.write_text(f"# fine\n{text}\n")
    for command in ("load", "diff"):
        answer = mav("params", command, str(file))
        assert answer.code == 2
        assert "line 2" in answer.err
    assert mav("params", "load", str(tmp_path / "none")).code == 2


def test_what_is_refused_is_told(mav: Callable[..., Answer]) -> None:
    read = mav("params", "get", "NO_SUCH_THING", "--timeout", "1")
    assert read.code == 1
    assert "NO_SUCH_THING" in read.err
    assert mav("params", "set", "X").code == 2
    assert mav("cmd", "explode").code == 1
    assert mav("cmd", "takeoff", "altitude").code == 2
    missing = mav("cmd", "takeoff", "--json")
    assert missing.code == 1
    assert missing.error["code"] == "command_invalid"


def test_a_long_operation_keeps_nobody_waiting(
    flown: tuple[str, Daemon], mav: Callable[..., Answer], capsys: pytest.CaptureFixture[str]
) -> None:
    """Commands of one terminal wait for none of another, not even an emergency's for an ordinary one."""
    slow = subprocess.Popen(
        [*COMMAND, "mav", "params", "get", *(f"NOT_{n}" for n in range(50)), "--data", str(flown[1].data)],
        env=child_environment(),
        stderr=subprocess.DEVNULL,
    )
    try:
        time.sleep(1.0)
        assert mav("status").code == 0
        assert mav("cmd", "mode", "mode=mission", "--timeout", "3").code == 0
        assert mav("cmd", "mode", "mode=" + ("hold" if flown[0] == "px4" else "stabilize")).code == 0
        assert flown[0] == "px4" or slow.poll() is None, "PX4 refuses names that it does not know at once"
    finally:
        slow.kill()
        slow.wait()


def test_messages_are_watched(mav: Callable[..., Answer]) -> None:
    seen = mav("watch", "ATTITUDE", "-n", "3").objects
    assert [one["mavpackettype"] for one in seen] == ["ATTITUDE"] * 3


def test_a_flight(mav: Callable[..., Answer], kind: str) -> None:
    """The same words for both: up, to another mode, and down."""
    up = mav("cmd", "takeoff", "altitude=3")
    assert up.out.removeprefix("mode: accepted\n") == "arm: accepted\ntakeoff: accepted\n"
    assert kind == "px4" or up.out.startswith("mode: accepted"), "PX4 may be in hold already"
    told = mav("status", "--json").object["vehicle"]
    assert told["armed"] is True
    assert mav("cmd", "hold").out == "hold: accepted\n"
    assert mav("cmd", "motor_test", "motor=1", "throttle=0.1", "seconds=1").code == 1
    down = [one["status"] for one in mav("cmd", "land", "--json").objects]
    assert down == ["success"]
    end = time.monotonic() + 30
    while mav("status", "--json").object["vehicle"]["armed"]:
        assert time.monotonic() < end, "it does not land"
        time.sleep(0.2)


def test_without_a_vehicle_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    buses = Buses()
    try:
        daemon = buses.up("--set", "mavlink_endpoint=udpin:127.0.0.1:0", "--set", "http_enabled=false")
        daemon.ready()
        cli = Cli(daemon.data, capsys)
        answer = cli("mav", "status")
        assert answer.code == 1
        assert "no vehicle is heard" in answer.err
        answer = cli("mav", "cmd", "arm", "--json")
        assert answer.error["code"] == "vehicle_not_connected"
    finally:
        buses.close()


def test_a_message_is_asked_for_more_often(mav: Callable[..., Answer]) -> None:
    assert mav("rate", "ATTITUDE", "50").out == "ATTITUDE: 50 times a second\n"
    assert mav("rate", "NO_SUCH_MESSAGE", "5").code == 2
