"""`petalbus sim`: the simulated vehicle by itself."""

from __future__ import annotations

import signal
import subprocess

from .conftest import COMMAND, run_process
from support.procs import child_environment


def test_it_runs_until_it_is_told_to_end() -> None:
    words = [*COMMAND, "sim", "--endpoint", "udpout:127.0.0.1:9", "--autopilot", "ardupilot", "--reorder", "0.1"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=child_environment())
    try:
        assert process.stdout is not None
        assert "simulated ardupilot vehicle 1" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.communicate()


def test_its_options_are_its_own() -> None:
    told = run_process("sim", "--help")
    assert told.code == 0
    assert "--wrong-echo" in told.out
    assert run_process("sim", "--loss", "7").code == 2
