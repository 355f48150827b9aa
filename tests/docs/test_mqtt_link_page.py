"""The page about the MQTT link: its example runs as it stands there, and every problem word is explained."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from .pages import DOCS, examples, table
from support.broker import program
from support.procs import ROOT, child_environment
from support.servers import free_port, kill_leftovers, poll_until, short_directory

PAGE = DOCS / "mqtt-link.md"
ECHO = "petalbus.petals.echo:EchoPetal"


@pytest.fixture
def terminal() -> Iterator[Path]:
    """A directory with a command `petalbus`, for shells; the bus that is started in it is ended."""
    with short_directory() as directory:
        command = directory / "bin" / "petalbus"
        command.parent.mkdir()
        code = "from petalbus.daemon.cli import main; main()"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{code}" "$@"\n')
        command.chmod(0o755)
        yield directory
        kill_leftovers(directory / "petalbus")


def shell(code: str, terminal: Path, port: int) -> subprocess.Popen[str]:
    """A terminal of its own in which the example is typed. Its broker has a port of its own: tests run side by side."""
    paths = [str(terminal / "bin"), os.environ["PATH"], "/usr/sbin"]
    extra = {"PATH": os.pathsep.join(paths), "XDG_STATE_HOME": str(terminal)}
    if not any(point.name == "echo" for point in metadata.entry_points(group="petal.plugins")):
        extra["PETALBUS_PETALS_PATHS"] = ECHO  # where the package is not installed, only on the path
    return subprocess.Popen(
        ["bash", "-euc", code.replace("1883", str(port))],
        cwd=terminal,
        env=child_environment(extra),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_a_command_from_mosquitto_pub_and_its_response(terminal: Path) -> None:
    """S-185, S-188, S-205: `petalbus up --sim` with a local Mosquitto, a petal, mosquitto_pub and mosquitto_sub."""
    for name in ("mosquitto", "mosquitto_pub", "mosquitto_sub"):
        program(name)
    first, second = examples(PAGE, "sh")
    port = free_port()
    daemon = shell(first.code, terminal, port)
    try:
        poll_until((terminal / "petalbus" / "bus.json").exists, "the bus is there")
        asking = shell(second.code, terminal, port)
        out, _ = asking.communicate(timeout=60)
    finally:
        os.killpg(daemon.pid, signal.SIGTERM)
        said, _ = daemon.communicate(timeout=30)
    assert asking.returncode == 0, (out, said)
    (answer,) = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    (documented,) = [json.loads(example.code) for example in examples(PAGE, "json")]
    varies = {"timestamp": documented["timestamp"]}
    assert answer | varies == documented


def test_every_problem_is_explained() -> None:
    """What the transports may tell as a problem stands in the table, and nothing else does."""
    written = {word for row in table(PAGE, "problem") for word in re.findall(r"`([^`]+)`", row[0])}
    assert written == problems() | {"no-daemon"}


def problems() -> set[str]:
    """The problem words in the code: first of a Failure or _Away, second of a LinkState, first of a table's tuple."""
    found: set[str] = set()
    folder = ROOT / "src" / "petalbus" / "handlers" / "mqtt"
    for file in [*folder.glob("direct/*.py"), *folder.glob("client/*.py"), folder / "off.py"]:
        for node in ast.walk(ast.parse(file.read_text())):
            at = {"Failure": 0, "_Away": 0, "LinkState": 1}.get(_called(node))
            if at is not None and isinstance(node, ast.Call) and len(node.args) > at:
                found |= _texts(node.args[at])
            elif isinstance(node, ast.Assign | ast.AnnAssign) and _name(node) in ("TAKEN", "problem"):
                found |= _texts(node.value)
            elif isinstance(node, ast.Tuple) and len(node.elts) in (2, 3, 4) and file.stem in ("errors", "filters"):
                found |= {text for text in _texts(node.elts[0]) if " " not in text}
            elif isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple) and file.stem == "filters":
                found |= _texts(node.value.elts[0])
    return found


def _called(node: ast.AST) -> str:
    return getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""


def _name(node: ast.Assign | ast.AnnAssign) -> str:
    target = node.targets[0] if isinstance(node, ast.Assign) else node.target
    return getattr(target, "id", "")


def _texts(node: ast.AST | None) -> set[str]:
    if isinstance(node, ast.IfExp):
        return _texts(node.body) | _texts(node.orelse)
    return {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()


def test_every_answer_of_the_link_is_explained() -> None:
    """The error codes that the link itself puts into responses."""
    written = {word for row in table(PAGE, "`error_code`") for word in re.findall(r"`([A-Z_]+)`", row[0])}
    told: set[str] = set()
    for file in ("ingress", "dispatch", "waiting"):
        text = (ROOT / "src" / "petalbus" / "handlers" / "mqtt" / f"{file}.py").read_text()
        told |= set(re.findall(r'"([A-Z]+_[A-Z]+)"', text))
    assert told <= written
    assert "OUTCOME_UNKNOWN" in written


def test_the_states_and_limits_are_the_code_s() -> None:
    from petalbus.handlers.mqtt.options import DirectOptions, EgressOptions
    from petalbus.handlers.mqtt.transport import Phase

    assert {row[0].strip("`") for row in table(PAGE, "phase")} == {str(phase) for phase in Phase}
    limits = {row[0]: row[1] for row in table(PAGE, "limit")}
    egress = EgressOptions()
    assert limits["messages, bytes a second"].startswith(f"{egress.rate:g}, {egress.bytes_rate / 1024:g} KiB")
    assert limits["levels, bytes of a topic or filter"] == f"{egress.max_levels}, {egress.max_topic}"
    assert limits["unacknowledged at a time"].startswith(f"{DirectOptions().window},")
    assert limits["handed to the link and not confirmed"].startswith(f"{egress.held};")
