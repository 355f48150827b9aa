"""Child programs: pinned, told what to do, and surely ended; and who else used the core."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import hiredis
import orjson
import pytest

from petalbus.daemon.bench import sample
from petalbus.daemon.bench.job import Job
from petalbus.daemon.bench.load import Watch, process_seconds
from petalbus.daemon.bench.peers import found
from petalbus.daemon.bench.peers.floor import Wire
from petalbus.daemon.bench.process import ChildFailed, ChildProcess, allowed_cores, child_environment

from support.servers import RealServer, poll_until

CORE = allowed_cores()[-1]
PROGRAM = (sys.executable, "-m", "petalbus.daemon.bench.peers.floor")
SILENT = (sys.executable, "-c", "import time; time.sleep(60)")


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists() or "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()


def test_a_job_survives_the_command_line() -> None:
    job = Job(address="/a path/with=signs", count=7, rate=500, variant="topic")
    assert Job.parse(job.words()) == job
    with pytest.raises(ValueError, match="no 'speed'"):
        Job.parse(["speed=3"])


def test_value_and_bytes_of_a_payload_are_the_same_json() -> None:
    """All peers carry the same bytes, whether they encode JSON or not."""
    now = sample.now()
    value, body = sample.command(12, now, sample.note(300)), sample.command_bytes(12, now, sample.note(300).encode())
    assert orjson.loads(body) == value
    assert sample.sent_at(body) == now
    assert abs(len(body) - 300) <= 8
    assert abs(len(orjson.dumps(sample.telemetry(12, now, sample.note(300)))) - 300) <= 20


def test_the_c_floor_sends_what_the_python_floor_sends(server: RealServer, tmp_path: Path) -> None:
    peers = found.find_peers(tmp_path)
    if peers["c-floor"].missing is not None:
        pytest.skip(peers["c-floor"].missing)
    sizes = {}
    for name in ("floor", "c-floor"):
        server.command("DEL", "records")
        job = Job(address=server.socket_path, count=3)
        done = subprocess.run(
            [*peers[name].program, "producer", *job.words()],
            input="open\ngo\n",
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
            env=child_environment(),
        )
        assert [line.split()[0] for line in done.stdout.splitlines()] == ["loaded", "ready", "result"]
        rows = server.command("XRANGE", "records", "-", "+")
        assert len(rows) == 3
        body = rows[2][1][b"data"]
        assert orjson.loads(body)["sequence"] == 2
        sizes[name] = len(body)
    assert abs(sizes["floor"] - sizes["c-floor"]) <= 2
    server.command("DEL", "records")


def test_the_floor_raises_what_the_server_refuses(server: RealServer) -> None:
    with closing(Wire(server.socket_path)) as wire, pytest.raises(hiredis.ReplyError, match="unknown command"):
        wire.call("NOSUCHCOMMAND")


async def test_a_child_is_pinned_and_ends_with_its_block(server: RealServer) -> None:
    async with ChildProcess(PROGRAM, "responder", Job(address=server.socket_path), core=CORE) as child:
        await child.loaded()
        tasks = [int(entry.name) for entry in Path(f"/proc/{child.pid}/task").iterdir()]
        assert all(os.sched_getaffinity(task) == {CORE} for task in tasks)
        await child.open()
        pid = child.pid
        assert not gone(pid)
    assert gone(pid)
    server.command("DEL", "requests")


async def test_a_child_that_fails_is_reported_with_its_own_words() -> None:
    async with ChildProcess(PROGRAM, "requester", Job(address="/no/such/socket"), core=None) as child:
        await child.loaded()
        with pytest.raises(ChildFailed, match=r"(?s)requester ended before 'ready'.*FileNotFoundError"):
            await child.open()


async def test_a_child_that_says_nothing_runs_out_of_time() -> None:
    async with ChildProcess(SILENT, "anything", Job(), core=None) as child:
        with pytest.raises(ChildFailed, match=r"did not say 'result' within 0\.1 s"):
            await child.result(0.1)
        pid = child.pid
    assert gone(pid)


def test_a_missing_peer_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    peers = found.find_peers(tmp_path)
    assert "no C compiler" in (peers["c-floor"].missing or "")
    assert "petalbus[bench]" in (peers["faststream"].missing or "")
    assert "petalbus[bench]" in (peers["jetstream"].missing or "")
    assert peers["petalbus"].missing is None
    assert peers["floor"].missing is None


def test_a_floor_that_does_not_compile_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if found.find_peers(tmp_path)["c-floor"].missing is not None:
        pytest.skip("nothing compiles here")
    broken = tmp_path / "broken.c"
    broken.write_text("#include <hiredis/no_such_header.h>\n")
    monkeypatch.setattr(found, "SOURCE", broken)
    assert "no_such_header.h" in (found.find_peers(tmp_path)["c-floor"].missing or "")


def test_time_that_others_use_is_told_from_our_own() -> None:
    here = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {CORE})
    try:
        shares = {}
        for name, ours in (("ours", [os.getpid()]), ("foreign", [])):
            watch = Watch(CORE, servers=())
            watch.start(ours)
            end = time.monotonic() + 0.3
            while time.monotonic() < end:
                pass
            watch.stop(ours)
            assert watch.foreign is not None
            shares[name] = watch.foreign
    finally:
        os.sched_setaffinity(0, here)
    assert shares["foreign"] > 0.8  # we ourselves are the others here
    assert shares["ours"] < shares["foreign"]


def test_the_time_of_a_child_that_has_ended_is_not_lost() -> None:
    before = process_seconds([])
    with subprocess.Popen([sys.executable, "-S", "-c", "sum(range(10_000_000))"]) as child:
        child.wait(20)
    used = process_seconds([child.pid]) - before
    assert used > 0.02


@pytest.mark.processes
def test_a_terminated_bench_leaves_nothing_behind(tmp_path: Path) -> None:
    environment = {**child_environment(), "TMPDIR": str(tmp_path)}
    command = [
        sys.executable,
        "-m",
        "petalbus.daemon.bench",
        "--only",
        "oneway",
        "--peer",
        "floor",
        "--peer",
        "petalbus",
    ]
    bench = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert bench.stderr is not None
    assert "round 1" in bench.stderr.readline()
    poll_until(lambda: len(descendants(bench.pid)) >= 3, "the server and two children run")
    family = descendants(bench.pid)
    bench.send_signal(signal.SIGTERM)
    _, errors = bench.communicate(timeout=20)
    assert bench.returncode == 130
    assert "interrupted" in errors
    assert all(gone(pid) for pid in family)
    assert list(tmp_path.iterdir()) == []


def descendants(pid: int) -> list[int]:
    children = [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*children, *(other for child in children for other in descendants(child))]
