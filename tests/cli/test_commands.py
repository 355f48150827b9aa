"""Every command on a running bus with a simulated vehicle: what it prints, as text and as JSON, and how it ends."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import petalbus
from petalbus.daemon.server.discover import discover

from .conftest import COMMAND, Buses, Cli, Daemon, run_process
from support.procs import child_environment

TAKEOFF = '{"command":"takeoff","parameters":{"altitude":10}}'


@pytest.fixture
def app(request: pytest.FixtureRequest) -> str:
    """An application of the test's own."""
    return "app-" + re.sub(r"\W", "", request.node.name)[-40:]


@contextmanager
def follower(data: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A command that goes on until it is interrupted."""
    process = subprocess.Popen(
        [*COMMAND, *arguments, "--data", str(data)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=child_environment(),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line_of(process: subprocess.Popen[str], *, timeout: float = 20) -> str:
    """The next line of its output."""
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], timeout)[0], "no line in time"
    return process.stdout.readline()


# -- the story of the README ------------------------------------------------------------------------------------------


def test_request_to_the_vehicle_answers_with_its_acknowledgement_and_tail_shows_it_all(
    buses: Buses,
) -> None:
    """Command, frames and reply are all among the newest records, in the order of their time."""
    daemon = buses.up("--sim")
    daemon.ready()
    data = str(daemon.data)
    asked = run_process("request", "vehicle", "command", TAKEOFF, "--json", "--data", data)
    assert asked.code == 0, asked
    *steps, result = asked.objects
    assert [step["kind"] for step in steps] == ["progress"] * len(steps)
    assert result["kind"] == "result"
    assert result["source"] == "vehicle"
    assert result["data"]["mavlink_command"] == "MAV_CMD_NAV_TAKEOFF"
    assert result["data"]["result"] == "MAV_RESULT_ACCEPTED"

    seen = run_process("tail", "--json", "--count", "5000", "--data", data).objects
    (command,) = [one for one in seen if one["type"] == "command"]
    assert command["stream"] == "inbox:vehicle:normal"
    assert command["data"] == json.loads(TAKEOFF)
    frames = [one for one in seen if one["stream"] == "mavlink.rx"]
    acknowledged = [one["data"]["command"] for one in frames if one["type"] == "mavlink.COMMAND_ACK"]
    # arm, take off; a busy machine's daemon may ask for its streams again, too (510, 511)
    assert [one for one in acknowledged if one not in (510, 511)] == [400, 22]
    assert {"mavlink.HEARTBEAT", "mavlink.ATTITUDE"} <= {one["type"] for one in frames}
    replies = [one for one in seen if one["stream"] == "replies:cli"]
    assert [one["id"] for one in replies] == [one["id"] for one in asked.objects]
    assert {one["reply_to"] for one in replies} == {command["id"]}
    times = [one["mono"] for one in seen]
    assert times == sorted(times)
    assert times.index(command["mono"]) < times.index(replies[-1]["mono"])

    text = run_process("tail", "--count", "5000", "--data", data).out
    assert re.search(rf"inbox +cli -> vehicle normal command id={command['id']} ", text)
    assert re.search(rf"reply +vehicle -> cli command_response \[result\] id=\S+ re={command['id']} ", text)
    assert re.search(r'topic +vehicle => mavlink.rx mavlink.COMMAND_ACK {"command":22,"result":0', text)


# -- send, status, inbox ----------------------------------------------------------------------------------------------


def test_send_prints_the_receipt_and_the_same_id_is_stored_once(cli: Cli, app: str) -> None:
    first = cli.json("send", app, "note", '{"text":"hello"}', "--id", f"{app}-1", "--priority", "high")
    assert first["id"] == f"{app}-1"
    assert first["duplicate"] is False
    assert first["durability"] == "everysec"
    second = cli.json("send", app, "note", '{"text":"hello"}', "--id", f"{app}-1", "--priority", "3")
    assert second == {**first, "duplicate": True}
    assert cli.ok("send", app, "note", "{}", "--id", f"{app}-2").out.startswith(f"stored {app}-2 at ")
    assert cli.ok("send", app, "note", "{}", "--id", f"{app}-2").out.startswith(f"already stored {app}-2 at ")


@pytest.mark.parametrize("verb", ["send", "request"])
@pytest.mark.parametrize(
    ("record_type", "payload", "options", "level"),
    [
        ("command", '{"command":"emergency_stop"}', [], "critical"),
        ("emergency_command", '{"action":"land_immediately"}', [], "critical"),
        ("command", '{"command":"arm"}', [], "normal"),
        ("command", '{"command":"emergency_stop"}', ["--priority", "low"], "low"),
    ],
)
def test_without_a_priority_the_record_has_the_one_it_calls_for(
    cli: Cli, app: str, verb: str, record_type: str, payload: str, options: list[str], level: str
) -> None:
    """I7: an emergency stop typed in a hurry must not wait in a line."""
    more = ["--timeout", "0.05"] if verb == "request" else []
    assert cli(verb, app, record_type, payload, *options, *more).code == (4 if verb == "request" else 0)
    assert cli.json("tail", f"inbox:{app}:{level}")["type"] == record_type


def test_send_as_a_process_reads_the_payload_from_standard_input_or_a_file(
    shared: Daemon, cli: Cli, app: str, tmp_path: Path
) -> None:
    data = str(shared.data)
    (tmp_path / "payload.json").write_text('{"from":"file"}')
    assert run_process("send", app, "note", "-", "--data", data, stdin='{"from":"stdin"}').code == 0
    assert run_process("send", app, "note", f"@{tmp_path / 'payload.json'}", "--data", data).code == 0
    assert [one["data"]["from"] for one in cli.json("inbox", app)] == ["stdin", "file"]


def test_inbox_shows_what_waits_by_priority_with_its_age(cli: Cli, app: str) -> None:
    for level in ("low", "critical", "normal", "high"):
        cli.ok("send", app, "note", json.dumps({"level": level}), "--priority", level)
    found = cli.json("inbox", app)
    assert [one["data"]["level"] for one in found] == ["critical", "high", "normal", "low"]
    assert [one["priority"] for one in found] == [4, 3, 2, 1]
    assert all(0 <= one["age_s"] < 60 and one["consumer"] is None for one in found)
    lines = cli.ok("inbox", app).out.splitlines()
    assert lines[0].split() == ["PRIORITY", "AGE", "TYPE", "SOURCE", "ID", "STATE"]
    assert [line.split()[0] for line in lines[1:5]] == ["critical", "high", "normal", "low"]
    assert lines[5] == "waiting + being worked on: critical 1+0, high 1+0, normal 1+0, low 1+0"


async def test_inbox_shows_who_works_on_a_record(shared: Daemon, app: str) -> None:
    import asyncio

    begun, go_on = asyncio.Event(), asyncio.Event()
    async with petalbus.connect(app=app, data=shared.data) as bus:

        @bus.on("note")
        async def slow(_record: petalbus.Record) -> None:
            begun.set()
            await go_on.wait()

        await bus.listen()
        await bus.send(app, "note", {})
        await begun.wait()
        answer = await asyncio.to_thread(run_process, "inbox", app, "--json", "--data", str(shared.data))
        go_on.set()
    assert answer.object["consumer"].startswith(f"{app}-")
    assert answer.object["attempt"] == 1


def test_inbox_of_nobody_says_who_is_known(cli: Cli) -> None:
    answer = cli("inbox", "nobody-at-all")
    assert answer.code == 1
    assert answer.err.startswith("petalbus: no app 'nobody-at-all' has ever been on this bus; known: ")
    assert "vehicle" in answer.err
    assert cli.ok("inbox", "vehicle").out == "nothing waits for vehicle\n"


def test_status_follows_a_message(cli: Cli, app: str) -> None:
    sent = cli.json("send", app, "note", "{}")
    told = cli.json("status", sent["id"])
    assert told["status"] == "pending"
    assert told["stream_id"] == sent["stream_id"]
    assert (told["source"], told["recipient"], told["priority"]) == ("cli", app, 2)
    assert cli.ok("status", sent["id"]).out == f"pending: from cli to {app}, entry {sent['stream_id']}\n"
    reply = cli.json("request", "petalbus", "ping", "{}", "--id", f"{app}-ping")
    done = cli.json("status", f"{app}-ping")
    assert (done["status"], done["reply_stream_id"]) == ("completed", reply["stream_id"])
    unknown = cli("status", "never-seen", "--json")
    assert unknown.code == 1
    assert unknown.error["code"] == "unknown_message"


def test_a_message_past_its_deadline_is_a_timeout(cli: Cli, app: str) -> None:
    sent = cli.json("send", app, "note", "{}", "--deadline", "0.001")
    assert cli.json("status", sent["id"])["status"] == "timeout"


# -- request ----------------------------------------------------------------------------------------------------------


def test_request_prints_progress_and_result_for_people(cli: Cli) -> None:
    answer = cli.ok("request", "vehicle", "command", '{"command":"disarm"}')
    assert re.fullmatch(r'result from vehicle: \{"status": "success", "command": "disarm".*\}\n', answer.out)


def test_an_error_reply_is_exit_1_with_its_message(cli: Cli) -> None:
    answer = cli("request", "vehicle", "command", '{"command":"fly"}')
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.startswith("petalbus: vehicle answered ")
    assert "'fly'" in answer.err
    as_json = cli("request", "vehicle", "command", '{"command":"fly"}', "--json")
    assert as_json.code == 1
    assert as_json.object["kind"] == "error"
    assert as_json.error["code"] == as_json.object["data"]["error_code"].lower()
    assert "'fly'" in as_json.error["message"]


def test_no_reply_in_time_is_exit_4_and_says_what_is_known(cli: Cli) -> None:
    answer = cli("request", "nobody-there", "command", '{"command":"arm"}', "--timeout", "0.3")
    assert answer.code == 4
    assert "within 0.3 s: no application of that name has ever been on this bus" in answer.err
    assert cli("request", "nobody-there", "x", "{}", "--timeout", "0.3", "--json").error["code"] == "request_timeout"


def test_the_same_request_again_gets_the_first_reply(cli: Cli, app: str) -> None:
    """I2: the handler ran once."""
    first = cli.json("request", "petalbus", "ping", "{}", "--id", f"{app}-same")
    assert cli.json("request", "petalbus", "ping", "{}", "--id", f"{app}-same")["id"] == first["id"]


def test_the_daemon_tells_the_fields_of_its_status_that_it_is_asked_for(cli: Cli, shared: Daemon) -> None:
    told = cli.json("request", "petalbus", "status_request", '{"fields":["pid","parts"]}')["data"]
    assert set(told) == {"status", "pid", "parts"}
    assert told["pid"] == shared.pid
    assert told["parts"]["mavlink"]["statistics"]["vehicle"]["connected"] is True
    wrong = cli("request", "petalbus", "status_request", '{"fields":["colour"]}')
    assert wrong.code == 1
    assert "there is no field 'colour'; there are version, bus" in wrong.err


# -- wrong usage ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["send", "a", "note", '{"x":}'], 2, "JSON: expecting value at line 1 column 6, near '{\"x\":}'"),
        (["send", "a", "note", '{\n "x": 1,,\n}'], 2, "at line 2 column 9"),
        (["send", "a", "note", ""], 2, "JSON: expecting value at line 1 column 1"),
        (["send", "a", "note", '{"x":NaN}'], 2, "NaN is not JSON"),
        (["send", "a", "note", "[" * 100_000], 2, "JSON: "),
        (["send", "a", "note", "@/nowhere/x.json"], 2, "/nowhere/x.json"),
        (["send", "a", "note", "{}", "--priority", "urgent"], 2, "low (1), normal (2), high (3), critical (4)"),
        (["send", "a", "note", "{}", "--deadline", "soon"], 2, "--deadline"),
        (["send", "a", "note"], 2, "JSON"),
        (["send", "two words", "note", "{}"], 1, "recipient"),
        (["send", "a", "no type", "{}"], 1, "'type'"),
        (["send", "a", "note", "{}", "--id", "two words"], 1, "'id'"),
        (["send", "a", "note", "{}", "--deadline", "-1"], 1, "'deadline'"),
        (["send", "a", "command", '{"command":5}'], 1, "command"),
        (["request", "a", "note", "{}", "--timeout", "0"], 2, "--timeout"),
        (["tail", "inbox:"], 2, "inbox:APP"),
        (["tail", "a:b:c:d"], 2, "inbox:APP"),
        (["tail", "inbox:a:urgent"], 2, "priority 'urgent' is unknown"),
        (["tail", "never.seen"], 1, "there are "),
        (["status"], 2, "ID"),
        (["dead", "show", "a", "1-1"], 1, "has no dead letter '1-1'"),
        (["dead", "show", "a", "first"], 1, "'first' is not a dead letter's id"),
        (["dead", "drop", "a", "1-1"], 1, "has no dead letter"),
        (["dead", "requeue", "a", "1-1"], 1, "has no dead letter"),
        (["dead", "edit", "a", "1-1"], 2, "--payload JSON, --type TYPE"),
        (["top", "--once", "--interval", "0"], 2, "--interval"),
        (["replay", "--into", "/x", "--speed", "fast"], 2, "--speed 'fast'"),
        (["replay", "--into", "/x", "--from", "noon"], 2, "'noon'"),
        (["replay"], 2, "--into"),
        (["bench", "--only", "nothing"], 2, "'nothing'"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(cli: Cli, arguments: list[str], code: int, words: str) -> None:
    answer = cli(*arguments)
    assert (answer.code, answer.out) == (code, ""), answer
    assert words in answer.err
    assert len(answer.err.splitlines()) == 1
    assert "Traceback" not in answer.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["send", "a", "note", "{}"], ["request", "a", "note", "{}"], ["tail"], ["inbox", "a"], ["apps"],
        ["status", "x"], ["dead", "list"], ["dead", "show", "a", "1-1"], ["dead", "drop", "a", "1-1"],
        ["top", "--once"],
    ],
)  # fmt: skip
def test_without_a_running_bus_every_command_says_so_with_exit_3(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    cli = Cli(tmp_path, capsys)
    answer = cli(*arguments)
    assert (answer.code, answer.out) == (3, "")
    assert answer.err.startswith(f"petalbus: no running bus in {tmp_path}: ")
    assert "petalbus up" in answer.err
    assert cli(*arguments, "--json").error["code"] == "no_running_bus"


@pytest.mark.parametrize("arguments", [[], ["dead"], ["config"]])
def test_nothing_asked_for_prints_the_help(arguments: list[str]) -> None:
    answer = run_process(*arguments)
    assert (answer.code, answer.err) == (2, "")
    assert "Usage: petalbus" in answer.out


def test_errors_are_one_json_object_with_json(shared: Daemon) -> None:
    answer = run_process("send", "a", "note", "{", "--json", "--data", str(shared.data))
    assert answer.code == 2
    assert answer.error == {"code": "usage", "message": answer.error["message"], "exit_code": 2}
    assert run_process("send", "--json").error["code"] == "usage"


# -- tail -------------------------------------------------------------------------------------------------------------


def test_tail_of_one_stream_shows_its_newest_records(cli: Cli, app: str) -> None:
    for number in range(5):
        cli.ok("send", app, "note", json.dumps({"number": number}), "--priority", "low" if number % 2 else "high")
    shown = cli.json("tail", f"inbox:{app}", "-n", "3")
    assert [one["data"]["number"] for one in shown] == [2, 3, 4]
    assert [one["stream"] for one in shown] == [f"inbox:{app}:high", f"inbox:{app}:low", f"inbox:{app}:high"]
    assert [one["data"]["number"] for one in cli.json("tail", f"inbox:{app}:low")] == [1, 3]
    assert cli.ok("tail", f"inbox:{app}", "-n", "0").out == ""


def test_tail_decodes_mavlink_frames_and_keeps_their_bytes(cli: Cli) -> None:
    import base64

    frames = cli.json("tail", "mavlink.rx", "-n", "20")
    assert len(frames) == 20
    for frame in frames:
        assert frame["type"] == f"mavlink.{frame['data']['mavpackettype']}"
        assert base64.b64decode(frame["data_base64"])[0] == 0xFD
    line = cli.ok("tail", "mavlink.rx", "-n", "1").out
    assert re.match(r" +\d+\.\d{3}s topic +vehicle => mavlink.rx mavlink\.[A-Z_]+ \{", line)


async def test_tail_shows_payloads_that_are_no_json_and_entries_that_are_no_records(shared: Daemon, app: str) -> None:
    import asyncio

    async with petalbus.connect(app=app, data=shared.data) as bus:
        await bus.publish(f"{app}.raw", "photo", b"\x00\x01\xff", content_type="image/x-test")
        await bus.call("XADD", bus.keys.topic(f"{app}.raw"), "*", "colour", "red")
    answer = await asyncio.to_thread(run_process, "tail", f"{app}.raw", "--json", "--data", str(shared.data))
    photo, foreign = answer.objects
    assert (photo["data"], photo["data_base64"], photo["content_type"]) == (None, "AAH/", "image/x-test")
    assert foreign["problem"].startswith("not a record: field 'id'")
    text = await asyncio.to_thread(run_process, "tail", f"{app}.raw", "--data", str(shared.data))
    assert "3 bytes 0001ff" in text.out
    assert "not a record" in text.out


async def test_tail_tells_compact_entries_of_an_earlier_boot_from_those_of_this_one(shared: Daemon, app: str) -> None:
    """I9: frames from before a reboot have no age by this boot's clock, and come first."""
    import asyncio

    from petalbus.schemas.compact import CompactEntry, CompactForm
    from petalbus.schemas.stamps import BOOT_ID, boot_clock_ns

    topic = f"{app}.rx"
    async with petalbus.connect(app=app, data=shared.data) as bus:
        await bus.call("XADD", bus.keys.topic(topic), "*", *CompactEntry("1", 1, b"").to_fields())
        undeclared = await asyncio.to_thread(run_process, "tail", topic, "--data", str(shared.data))
        assert "not a record" in undeclared.out
    for boot, mono in (("earlier-boot", boot_clock_ns() + 10**15), (BOOT_ID, boot_clock_ns())):
        async with petalbus.connect(app=app, data=shared.data) as bus:
            form = CompactForm(topic, "x.", app, boot_id=boot)
            await bus.publish_compact(form, [CompactEntry("1", mono, b"")])
    answer = await asyncio.to_thread(run_process, "tail", topic, "--json", "-n", "2", "--data", str(shared.data))
    assert [one["boot_id"] for one in answer.objects] == ["earlier-boot", BOOT_ID]
    text = await asyncio.to_thread(run_process, "tail", topic, "-n", "2", "--data", str(shared.data))
    assert [line.startswith("  old boot") for line in text.out.splitlines()] == [True, False]


def test_tail_follow_goes_on_with_what_comes_until_ctrl_c(shared: Daemon, cli: Cli, app: str) -> None:
    cli.ok("send", app, "note", '{"number":0}')
    with follower(shared.data, "tail", f"inbox:{app}", "--follow", "--json") as tail:
        assert json.loads(line_of(tail))["data"] == {"number": 0}
        cli.ok("send", app, "note", '{"number":1}')
        assert json.loads(line_of(tail))["data"] == {"number": 1}
        cli.ok("send", app, "note", '{"number":2}', "--priority", "critical")  # a stream that was not there before
        assert json.loads(line_of(tail))["data"] == {"number": 2}
        tail.send_signal(signal.SIGINT)
        _, errors = tail.communicate(timeout=20)
        assert (tail.returncode, errors) == (0, "")


def test_tail_follow_of_everything_finds_new_streams(shared: Daemon, cli: Cli, app: str) -> None:
    with follower(shared.data, "tail", "--follow", "--json", "-n", "1") as tail:
        line_of(tail)
        cli.ok("send", app, "note", '{"new":true}')
        while json.loads(line_of(tail))["stream"] != f"inbox:{app}:normal":
            pass


def test_tail_leaves_no_consumer_group_behind(shared: Daemon, cli: Cli, app: str) -> None:
    cli.ok("send", app, "note", "{}")
    cli.ok("tail", f"inbox:{app}")
    cli.ok("inbox", app)
    cli.ok("top", "--once", "--interval", "0.1")
    with follower(shared.data, "tail", f"inbox:{app}", "--follow") as tail:
        line_of(tail)
    import redis

    with redis.Redis(unix_socket_path=str(shared.data / "bus.sock")) as server:
        assert server.xinfo_groups(f"{{petalbus}}:queue:{app}:inbox:2") == []


def test_output_into_a_pipe_that_closes_ends_quietly(shared: Daemon) -> None:
    command = " ".join(f"'{word}'" for word in [*COMMAND, "tail", "-n", "1000", "--data", str(shared.data)])
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | head -n 1"],
        capture_output=True,
        text=True,
        env=child_environment(),
        timeout=30,
        check=False,
    )
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert "Error" not in done.stderr


# -- apps, dead letters, top ------------------------------------------------------------------------------------------


def test_apps_lists_who_is_there(cli: Cli) -> None:
    found = {one["app"]: one for one in cli.json("apps")}
    assert found["vehicle"]["status"] == "online"
    assert found["petalbus"]["consumers"] == 1
    assert "cli" not in found
    lines = cli.ok("apps").out.splitlines()
    assert lines[0].split() == ["APP", "STATUS", "LIVE", "LAST", "SEEN"]
    assert any(re.match(r"vehicle +online +1 +.* ago", line) for line in lines)


async def die(data: Path, app: str, count: int = 1) -> None:
    """Let records of an app become dead letters."""
    async with petalbus.connect(app=app, data=data) as bus:

        @bus.on("note", max_attempts=1)
        async def broken(record: petalbus.Record) -> None:
            raise RuntimeError(f"cannot take {record.data['number']}")

        await bus.listen()
        for number in range(count):
            with pytest.raises(petalbus.ReplyError):
                await bus.request(app, "note", {"number": number}, id=f"{app}-{number}")


async def test_dead_letters_are_listed_shown_edited_requeued_and_dropped(shared: Daemon, app: str) -> None:
    await die(shared.data, app, count=2)
    import asyncio

    async def tool(*arguments: str) -> Any:
        answer = await asyncio.to_thread(run_process, "dead", *arguments, "--data", str(shared.data))
        assert answer.code == 0, answer
        return answer.objects if "--json" in arguments else answer.out

    first, second = await tool("list", app, "--json")
    assert [one["id"] for one in (first, second)] == [f"{app}-0", f"{app}-1"]
    assert first["reason"] == "RuntimeError: cannot take 0"
    assert first in await tool("list", "--json")  # of all apps
    text = await tool("list", app)
    row = rf"^{app} +{first['entry']} +note +{app} +{app}-0 +1 +RuntimeError: cannot take 0"
    assert re.search(row, text, re.MULTILINE)

    (shown,) = await tool("show", app, first["entry"], "--json")
    assert shown["fields"]["data"] == '{"number":0}'
    assert "Traceback" in shown["detail"]
    assert "raise RuntimeError" in await tool("show", app, first["entry"])

    (edited,) = await tool("edit", app, first["entry"], "--payload", '{"number":7}', "--json")
    (back,) = await tool("requeue", app, edited["entry"], "--json")
    (waiting,) = (await asyncio.to_thread(run_process, "inbox", app, "--json", "--data", str(shared.data))).objects
    assert (waiting["id"], waiting["data"], waiting["stream_id"]) == (f"{app}-0", {"number": 7}, back["stream_id"])
    assert await tool("drop", app, second["entry"]) == f"dropped {second['entry']}\n"
    assert await tool("list", app) == "no dead letters\n"


def test_top_once_counts_rates_backlog_and_age(shared: Daemon, cli: Cli, app: str) -> None:
    for _ in range(3):
        cli.ok("send", app, "note", "{}", "--priority", "low")
    told = cli.json("top", "--once", "--interval", "0.5")
    (row,) = [one for one in told["inboxes"] if one["app"] == app]
    assert (row["priority"], row["waiting"], row["pending"], row["redelivered"]) == ("low", 3, 0, 0)
    assert 0 < row["oldest_s"] < 60
    (frames,) = [one for one in told["streams"] if one["stream"] == "mavlink.rx"]
    assert 10 < frames["in_per_s"] < 1000
    assert frames["length"] > 0
    assert told["memory"]["used"] > 0
    assert told["memory"]["ceiling"] == 512 << 20
    lines = cli.ok("top", "--once", "--interval", "0.1").out.splitlines()
    assert "dead letters:" in lines[0]
    assert any(line.split()[:2] == [app, "low"] for line in lines)


async def test_top_counts_dead_letters_and_what_cancelled_messages_left(shared: Daemon, cli: Cli, app: str) -> None:
    """A deleted entry makes the server forget how many wait: then they are counted."""
    import asyncio

    await die(shared.data, app)
    async with petalbus.connect(app="boss", data=shared.data) as bus:
        sent = [await bus.send(f"{app}2", "note", {"number": number}) for number in range(4)]
        assert await bus.cancel(sent[1].id)
    told = (await asyncio.to_thread(run_process, "top", "--once", "--json", "--data", str(shared.data))).object
    assert told["dead"][app] == 1
    (row,) = [one for one in told["inboxes"] if one["app"] == f"{app}2"]
    assert row["waiting"] == 3


def test_top_on_a_terminal_redraws_and_ends_with_ctrl_c(shared: Daemon) -> None:
    ours, its = pty.openpty()
    # a row for each inbox that the tests before this one left
    environment = {**child_environment({"COLUMNS": "120", "LINES": "900"}), "TERM": "xterm"}
    command = [*COMMAND, "top", "--interval", "0.2", "--data", str(shared.data)]
    with subprocess.Popen(command, stdin=its, stdout=its, stderr=subprocess.PIPE, env=environment) as top:
        try:
            seen = ""
            while seen.count("mavlink.rx") < 3:
                assert select.select([ours], [], [], 20)[0], seen
                seen += os.read(ours, 65536).decode()
            assert "redelivered" in seen
            top.send_signal(signal.SIGINT)
            until = time.monotonic() + 20
            while top.poll() is None and time.monotonic() < until:  # a terminal that nobody reads would hold it up
                if select.select([ours], [], [], 0.05)[0]:
                    os.read(ours, 65536)
            _, errors = top.communicate(timeout=1)
        finally:
            top.kill()
            os.close(ours)
            os.close(its)
        assert (top.returncode, errors) == (0, b"")


def test_top_into_a_pipe_goes_on_until_it_is_interrupted(shared: Daemon) -> None:
    with follower(shared.data, "top", "--interval", "0.1", "--json") as top:
        for _ in range(3):
            assert json.loads(line_of(top))["interval_s"] >= 0.1
        top.send_signal(signal.SIGINT)
        assert top.wait(20) == 0


# -- replay, version --------------------------------------------------------------------------------------------------


def test_replay_writes_history_into_a_fresh_bus_and_not_into_a_running_one(
    shared: Daemon, buses: Buses, cli: Cli, app: str
) -> None:
    sent = [cli.json("send", app, "note", json.dumps({"number": number}))["id"] for number in range(5)]
    into = buses.directory()
    done = cli.json("replay", "--into", str(into), "--stream", f"inbox:{app}", "--speed", "max")
    report = done[-1] if isinstance(done, list) else done
    assert (report["event"], report["records"]) == ("done", 5)
    fresh = buses.up(data=into)
    fresh.ready()
    replayed = run_process("tail", f"inbox:{app}", "--json", "--data", str(into)).objects
    assert [one["id"] for one in replayed] == sent
    refused = cli("replay", "--into", str(into), "--json")
    assert refused.code == 1
    assert refused.error["code"] == "replay_refused"


def test_version_is_quick_and_imports_nothing_heavy() -> None:
    assert run_process("version").out == f"petalbus {petalbus.__version__}\n"
    assert run_process("version", "--json").object["version"] == petalbus.__version__
    code = (
        "import sys; from petalbus.daemon.cli.app import run; run(['version']);"
        "heavy = {'asyncio', 'redis', 'hiredis', 'rich', 'structlog', 'uvloop', 'pymavlink', 'orjson'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    answer = subprocess.run(
        [COMMAND[0], "-c", code], capture_output=True, text=True, env=child_environment(), check=True, timeout=20
    )
    assert answer.stdout.splitlines()[1] == "[]"


def processor_time(*command: str) -> float:
    """Seconds of user and system time that a program takes."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=child_environment()) as process:
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0
    return usage.ru_utime + usage.ru_stime


@pytest.mark.alone
def test_the_version_takes_little_more_than_what_it_is_made_of() -> None:
    """Next to an interpreter that only brings typer and what typer loads: all the rest is loaded when it is needed."""
    bare = [COMMAND[0], "-c", "import typer, pydantic; pydantic.TypeAdapter(int)"]
    pairs = [(processor_time(*COMMAND, "version"), processor_time(*bare)) for _ in range(5)]
    assert min(own / least for own, least in pairs) < 2.2, pairs


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [COMMAND[0], "-m", "petalbus.daemon", "version"],
        capture_output=True,
        text=True,
        env=child_environment(),
        check=True,
        timeout=20,
    )
    assert done.stdout == f"petalbus {petalbus.__version__}\n"


def test_every_command_takes_data_and_json_and_is_documented() -> None:
    from typer.main import get_command

    from petalbus.daemon.cli.app import app as whole

    docs = Path(__file__).resolve().parents[2] / "docs"
    of_the_bus, of_the_vehicle = (docs / "cli.md").read_text(), (docs / "mav.md").read_text()
    leaves = dict(leaves_of(get_command(whole)))
    assert len(leaves) == 64
    for name, command in leaves.items():
        options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
        documented = of_the_vehicle if name.startswith(("mav ", "sim")) else of_the_bus
        if name not in ("sim", "mav bench"):  # these need no bus
            assert "--data" in options, name
        if documented is of_the_bus:
            assert "--json" in options, name
        words = name.split()
        assert all(word in documented for word in words), name
        assert f"petalbus {' '.join(words[:2])}" in documented, name
        missing = [option for option in options - {"--data", "--json"} if option not in documented]
        assert not missing, (name, missing)


def leaves_of(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """All commands, with the words that one types."""
    inner = getattr(command, "commands", None)
    if not inner:
        yield name, command
    for word, one in (inner or {}).items():
        yield from leaves_of(one, f"{name} {word}".strip())


def test_tools_are_not_shown_as_applications_and_leave_no_heartbeat(shared: Daemon, cli: Cli) -> None:
    cli.ok("request", "petalbus", "ping", "{}")
    import redis

    with redis.Redis(unix_socket_path=str(shared.data / "bus.sock"), decode_responses=True) as server:
        assert not [field for field in server.hkeys("{petalbus}:beats") if field.startswith("cli|")]  # type: ignore[union-attr]
    assert discover(shared.data).bus == "petalbus"
