"""`petalbus mav ftp`, `log`, `shell`, `record` and `mission`: on both kinds of vehicle, from the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from petalbus.handlers.mavlink.files.tlog import read_tlog
from petalbus.handlers.mavlink.sim.autopilot import AUTOPILOTS
from petalbus.handlers.mavlink.sim.disk import Disk

from .conftest import Answer, Daemon, run_process

PLAN: dict[str, Any] = {
    "fileType": "Plan",
    "version": 1,
    "groundStation": "QGroundControl",
    "mission": {
        "version": 2,
        "firmwareType": 12,
        "vehicleType": 2,
        "plannedHomePosition": [47.3977, 8.5456, 489],
        "items": [
            {
                "type": "SimpleItem",
                "autoContinue": True,
                "command": command,
                "doJumpId": number,
                "frame": 3,
                "params": [0, 0, 0, None, 47.3977 + number / 1000, 8.5456, 20],
            }
            for number, command in enumerate((22, 16, 16), 1)
        ],
    },
    "geoFence": {"version": 2, "circles": [], "polygons": []},
    "rallyPoints": {"version": 2, "points": [[47.3977, 8.5456, 30]]},
}


def test_files_are_listed_fetched_sent_and_removed(mav: Callable[..., Answer], kind: str, tmp_path: Path) -> None:
    path, data = next(iter(Disk(AUTOPILOTS[kind], seed=1).files.items()))
    folder, _, name = path.rpartition("/")
    assert mav("ftp", "ls", folder, "--json").objects[0]["name"] == name
    assert mav("ftp", "get", path, tmp_path).code == 0
    assert (tmp_path / name).read_bytes() == bytes(data)
    mine = tmp_path / "mine"
    mine.write_bytes(b"hello" * 1000)
    assert mav("ftp", "mkdir", f"{folder}/new").code == 0
    assert mav("ftp", "put", mine, f"{folder}/new/a").code == 0
    assert mav("ftp", "mv", f"{folder}/new/a", f"{folder}/new/b").code == 0
    assert mav("ftp", "get", f"{folder}/new/b", tmp_path / "back").code == 0
    assert (tmp_path / "back").read_bytes() == mine.read_bytes()
    assert len(mav("ftp", "crc", f"{folder}/new/b").out.strip()) == 8
    assert mav("ftp", "rm", f"{folder}/new/b").code == 0
    assert mav("ftp", "rmdir", f"{folder}/new").code == 0
    gone = mav("ftp", "get", f"{folder}/new/b")
    assert gone.code == 1
    assert "no such file" in gone.err


def test_what_is_not_there_is_not_sent(mav: Callable[..., Answer], tmp_path: Path) -> None:
    assert mav("ftp", "put", tmp_path / "none", "/x").code == 2


def test_logs_are_listed_and_fetched(mav: Callable[..., Answer], kind: str, tmp_path: Path) -> None:
    logs = mav("log", "list", "--json").objects
    card = Disk(AUTOPILOTS[kind], seed=1)
    assert sorted(one["size"] for one in logs) == sorted(map(len, card.files.values()))
    smallest = min(logs, key=lambda one: int(one["size"]))
    assert mav("log", "get", smallest["id"], tmp_path / "log").code == 0
    assert (tmp_path / "log").read_bytes() == min((bytes(data) for data in card.files.values()), key=len)
    assert mav("log", "erase").code == 2, "it has to be said"


def test_the_shell(mav: Callable[..., Answer], kind: str) -> None:
    answer = mav("shell", "logger", "status", "--timeout", "2")
    if kind == "px4":
        assert (answer.code, "logg" in answer.out.lower()) == (0, True)
    else:
        assert answer.code == 1


def test_frames_are_recorded(flown: tuple[str, Daemon], tmp_path: Path) -> None:
    file = tmp_path / "flight.tlog"
    words = ("mav", "record", str(file), "--seconds", "1.5", "--data", str(flown[1].data))
    assert run_process(*words).code == 0
    frames = list(read_tlog(file))
    assert {frame.msgid for _, frame in frames} >= {0, 30}
    times = [at for at, _ in frames]
    assert times == sorted(times)


def test_missions_pass_through_files(mav: Callable[..., Answer], kind: str, tmp_path: Path) -> None:
    """The same plan means the same on both; ArduPilot's home appears where a file has a place for it."""
    file, back, text = tmp_path / "in.plan", tmp_path / "out.plan", tmp_path / "out.waypoints"
    file.write_text(json.dumps(PLAN))
    assert mav("mission", "upload", file).out.startswith("mission: 3 items are on the vehicle")
    assert [one["command"] for one in mav("mission", "show", "--json").objects] == [22, 16, 16]
    assert len(mav("mission", "show", "--kind", "rally", "--json").objects) == 1
    assert mav("mission", "current", "2").code == 0
    assert mav("status", "--json").object["mission"]["total"] in (3, 4, None)
    assert mav("mission", "download", back).code == 0
    items = json.loads(back.read_text())["mission"]["items"]
    assert [one["params"][4:6] for one in items] == [one["params"][4:6] for one in PLAN["mission"]["items"]]
    assert mav("mission", "download", text).code == 0
    assert len(text.read_text().splitlines()) == (4 if kind == "px4" else 5)
    assert mav("mission", "clear").code == 0
    assert mav("mission", "show", "--json").objects == []
    if kind == "ardupilot":
        assert mav("mission", "upload", text).code == 0
        assert len(mav("mission", "show", "--json").objects) == 3


def test_a_mission_that_makes_no_sense_is_refused(mav: Callable[..., Answer], tmp_path: Path) -> None:
    file = tmp_path / "bad.plan"
    for content in ("{", "{}", "QGC WPL 110\n0\t1", "nonsense"):
        file.write_text(content)
        assert mav("mission", "upload", file).code == 2, content
    assert mav("mission", "show", "--kind", "lunch").code == 2
