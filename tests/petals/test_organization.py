"""OrganizationManager: the file that comes, changes and vanishes; who hears of it; and which machine this is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from petalbus.petals import organization, watching
from petalbus.petals.heavy import run_heavy
from petalbus.petals.machine import MachineId, _made, find_machine_id
from petalbus.petals.organization import OrganizationManager, get_organization_manager, set_organization_manager

NOTICED = 1.5  # seconds in which a change must have been noticed, on a busy machine


@pytest.fixture(autouse=True)
def _no_machine_id_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PETAL_MACHINE_ID", raising=False)


@pytest.fixture(params=["inotify", "poll"])
async def manager(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Any]:
    """A started manager of a file whose directory does not exist yet; with inotify, and where there is none."""
    if request.param == "poll":

        def none() -> None:
            raise OSError("no inotify here")

        monkeypatch.setattr(watching, "_libc", none)
        assert organization._WITHOUT_INOTIFY <= 1
        monkeypatch.setattr(organization, "_WITHOUT_INOTIFY", 0.1)
    async with running(tmp_path, poll_interval=60.0) as made:
        assert made._watch.works == (request.param == "inotify")
        yield made


@contextlib.asynccontextmanager
async def running(directory: Path, **options: Any) -> AsyncIterator[OrganizationManager]:
    made = OrganizationManager(directory / "certs" / "perm" / "thing.json", data=directory / "data", **options)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


def thing(organization_id: str | None, name: str | None = "Instance-abc") -> dict[str, Any]:
    return {
        "thing": {"thingName": name, "retrievedAt": "2026-01-01", "lastReported": {"organizationId": organization_id}}
    }


def write(path: Path, content: Any) -> None:
    """As a careful writer does it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".new")
    beside.write_text(content if isinstance(content, str) else json.dumps(content))
    beside.rename(path)


async def becomes(manager: OrganizationManager, value: str | None, seconds: float = NOTICED) -> None:
    begun = time.monotonic()
    while manager.organization_id != value:
        assert time.monotonic() - begun < seconds, f"{manager.organization_id!r} is not {value!r} after {seconds} s"
        await asyncio.sleep(0.01)


async def test_it_comes_changes_and_vanishes_without_a_restart(manager: OrganizationManager, tmp_path: Path) -> None:
    """S-207, S-241, S-242, C-08: the directory too may come later; each change is noticed within about a second."""
    heard: list[str | None] = []
    manager.register_callback(heard.append)
    assert manager.organization_id is None
    write(manager.file_path, thing("ORG1"))
    await becomes(manager, "ORG1")
    manager.file_path.write_text(json.dumps(thing("ORG2")))  # in place
    await becomes(manager, "ORG2")
    write(manager.file_path, thing("ORG3"))
    await becomes(manager, "ORG3")
    manager.file_path.unlink()
    await becomes(manager, None)
    write(manager.file_path, thing("ORG4"))
    await becomes(manager, "ORG4")
    shutil.rmtree(tmp_path / "certs")
    await becomes(manager, None)
    write(manager.file_path, thing("ORG5"))
    await becomes(manager, "ORG5")
    assert heard == ["ORG1", "ORG2", "ORG3", None, "ORG4", None, "ORG5"]


async def test_what_cannot_be_understood_changes_nothing(
    manager: OrganizationManager, caplog: pytest.LogCaptureFixture
) -> None:
    """S-207: a half-written file is a writer at work: the last good value holds, with one warning."""
    write(manager.file_path, thing("ORG1"))
    await becomes(manager, "ORG1")
    text = json.dumps(thing("ORG2"))
    for broken in (text[: len(text) // 2], "", "[]", "\x00\x01", "x" * (2 << 20)):
        caplog.clear()
        write(manager.file_path, broken)
        async with asyncio.timeout(NOTICED):
            while "still holds" not in caplog.text:
                await asyncio.sleep(0.01)
        assert manager.organization_id == "ORG1"
    caplog.clear()
    await manager._look()
    assert caplog.text == ""
    write(manager.file_path, text)
    await becomes(manager, "ORG2")


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (thing("A"), "A"),
        (thing("A") | {"shadow": {"state": {"reported": {"organizationId": "B"}}}}, "A"),
        (
            thing(None)
            | {"shadow": {"state": {"reported": {"organizationId": "B"}, "desired": {"organizationId": "C"}}}},
            "B",
        ),
        ({"shadow": {"state": {"reported": {}, "desired": {"organizationId": "C"}}}}, "C"),
        ({"thing": {"lastReported": {"organizationId": " A "}}}, "A"),
        ({"thing": {"lastReported": {"organizationId": ""}}}, None),
        ({"thing": {"lastReported": {"organizationId": 7}}}, None),
        ({"thing": None, "shadow": {"state": []}}, None),
        ({}, None),
    ],
)
async def test_where_in_the_file_it_stands(tmp_path: Path, document: Any, expected: str | None) -> None:
    """S-241: what the thing reported last, then the shadow's reported state, then its desired one."""
    async with running(tmp_path) as manager:
        write(manager.file_path, document)
        assert await manager.refresh() == expected


async def test_all_that_is_known(tmp_path: Path) -> None:
    """S-207: the thing's name gives the machine id."""
    write(tmp_path / "certs" / "perm" / "thing.json", thing("ORG1"))
    before = time.time()
    async with running(tmp_path) as manager:
        info = manager.organization_info
        assert (info.organization_id, info.machine_id, info.thing_name) == ("ORG1", "abc", "Instance-abc")
        assert (info.retrieved_at, info.source) == ("2026-01-01", "file")
        assert before - 1 <= info.last_updated <= time.time() + 1
        assert manager.machine_id == "abc"


async def test_waiting_for_it(tmp_path: Path) -> None:
    """S-207, S-209: from any loop; None when it does not come in time."""
    async with running(tmp_path, startup_timeout=0.05) as manager:
        begun = time.monotonic()
        assert await manager.wait_for_organization_id() is None
        assert await manager.wait_for_organization_id(timeout=0) is None
        assert time.monotonic() - begun < 1

        async def handler() -> str | None:
            return await manager.wait_for_organization_id(5)

        waiting = [asyncio.create_task(handler()), asyncio.create_task(run_heavy(handler))]
        while len(manager._waiters) < 2:
            await asyncio.sleep(0.01)
        write(manager.file_path, thing("ORG1"))
        assert await asyncio.gather(*waiting) == ["ORG1", "ORG1"]
        assert await manager.wait_for_organization_id(0) == "ORG1"
        assert manager._waiters == set()


async def test_on_demand_it_is_read_at_once(tmp_path: Path) -> None:
    """S-208: whatever was noticed."""
    async with running(tmp_path) as manager:
        write(manager.file_path, thing("ORG1"))
        assert await manager.refresh() == "ORG1"
        assert manager.organization_id == "ORG1"


async def test_callbacks_build_on_the_new_value(tmp_path: Path) -> None:
    """S-209: whoever builds a name from the id does it when that appears, and again when it changes."""
    async with running(tmp_path) as manager:
        topics: list[str | None] = []

        def build(value: str | None) -> None:
            assert asyncio.get_running_loop() is manager._loop
            topics.append(f"org/{value}/device/Instance-{manager.machine_id}/" if value else None)

        manager.register_callback(build)
        manager.register_callback(build)  # once is enough
        write(manager.file_path, thing("ORG1"))
        await becomes(manager, "ORG1")
        write(manager.file_path, thing("ORG1", name="Instance-other"))  # another machine, the same organisation
        async with asyncio.timeout(NOTICED):
            while manager.machine_id != "other":
                await asyncio.sleep(0.01)
        write(manager.file_path, thing("ORG2"))
        await becomes(manager, "ORG2")
        manager.unregister_callback(build)
        write(manager.file_path, {})
        await becomes(manager, None)
    assert topics == ["org/ORG1/device/Instance-abc/", "org/ORG2/device/Instance-abc/"]


async def test_a_callback_that_fails_or_hangs_blocks_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """S-207: it is logged; a slow one gets the last value when it is ready for it."""
    heard: list[str | None] = []
    slow: list[str | None] = []
    go_on = asyncio.Event()

    def fails(_value: str | None) -> None:
        raise ValueError("a broken callback")

    async def fails_later(_value: str | None) -> None:
        raise ValueError("a broken coroutine")

    async def waits(value: str | None) -> None:
        slow.append(value)
        await go_on.wait()

    async with running(tmp_path) as manager:
        for callback in (fails, fails_later, waits, heard.append):
            manager.register_callback(callback)
        for value in ("ORG1", "ORG2", "ORG3"):
            write(manager.file_path, thing(value))
            await becomes(manager, value)
        assert heard == ["ORG1", "ORG2", "ORG3"]
        assert slow == ["ORG1"]
        go_on.set()
        async with asyncio.timeout(2):
            while len(slow) < 2:
                await asyncio.sleep(0.01)
        assert slow == ["ORG1", "ORG3"]
        go_on.clear()
        write(manager.file_path, {})
        await becomes(manager, None)
    assert slow == ["ORG1", "ORG3", None]  # the hanging one is cancelled by stop
    assert caplog.text.count("a broken callback") >= 3
    assert caplog.text.count("a broken coroutine") >= 3


async def test_the_fallback_answers_where_the_file_says_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """C-08: the file comes first; they converge without a restart."""
    stored: list[str | None] = [None]

    def broken() -> str | None:
        raise ValueError("a broken fallback")

    heard: list[str | None] = []
    async with running(tmp_path, fallback=lambda: stored[0]) as manager:
        manager.register_callback(heard.append)
        stored[0] = "STORED"
        manager.nudge()
        await becomes(manager, "STORED")
        assert manager.organization_info.source == "fallback"
        write(manager.file_path, thing("ORG1"))
        await becomes(manager, "ORG1")
        manager.file_path.unlink()
        await becomes(manager, "STORED")
        manager.fallback = broken
        manager.nudge()
        await becomes(manager, None)
    assert heard == ["STORED", "ORG1", "STORED", None]
    assert "the fallback for the organisation's id failed" in caplog.text


async def test_a_file_behind_a_link_is_noticed_by_looking(tmp_path: Path) -> None:
    """S-242: what the system does not tell of is found at the next look; so is a directory far above that is moved."""
    real = tmp_path / "real.json"
    write(real, thing("ORG1"))
    (tmp_path / "certs" / "perm").mkdir(parents=True)
    (tmp_path / "certs" / "perm" / "thing.json").symlink_to(real)
    async with running(tmp_path, poll_interval=0.2) as manager:
        assert manager.organization_id == "ORG1"
        write(real, thing("ORG2"))
        await becomes(manager, "ORG2")
        (tmp_path / "certs").rename(tmp_path / "elsewhere")
        await becomes(manager, None)
        (tmp_path / "elsewhere").rename(tmp_path / "certs")
        await becomes(manager, "ORG2")


async def test_a_busy_directory_costs_nothing(tmp_path: Path) -> None:
    """Other files come and go: the file is not read for them."""
    async with running(tmp_path) as manager:
        write(manager.file_path, thing("ORG1"))
        await becomes(manager, "ORG1")
        await asyncio.sleep(0.3)
        looks = 0
        look = manager._look

        async def counted() -> None:
            nonlocal looks
            looks += 1
            await look()

        manager._look = counted  # type: ignore[method-assign] # counts, and does the real thing
        for n in range(500):
            (manager.file_path.parent / f"other{n}").write_text("x")
        await asyncio.sleep(0.3)
        assert looks == 0
        write(manager.file_path, thing("ORG2"))
        await becomes(manager, "ORG2")


@pytest.mark.parametrize("kind", ["directory", "pipe"])
async def test_what_is_no_file_is_told(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "certs" / "perm" / "thing.json"
    path.parent.mkdir(parents=True)
    path.mkdir() if kind == "directory" else os.mkfifo(path)
    async with asyncio.timeout(5), running(tmp_path) as manager:
        assert manager.organization_id is None
    assert "no regular file" in caplog.text


async def test_it_can_be_started_again(tmp_path: Path) -> None:
    async with running(tmp_path) as manager:
        await manager.start()
        await manager.stop()
        write(manager.file_path, thing("ORG1"))
        await asyncio.sleep(0.1)
        assert manager.organization_id is None
        await manager.start()
        assert manager.organization_id == "ORG1"
    await manager.stop()
    assert manager.organization_id == "ORG1"
    with pytest.raises(ValueError, match="poll_interval"):
        OrganizationManager(poll_interval=0)


def test_there_is_one_manager_a_process(tmp_path: Path) -> None:
    """S-207: and it can be set."""
    set_organization_manager(None)
    try:
        first = get_organization_manager()
        assert first is get_organization_manager()
        assert str(first.file_path) == organization.FILE == "/opt/droneleaf/certs/perm/thing-parameters.json"
        mine = OrganizationManager(tmp_path / "thing.json", 1.0, 2.0)
        set_organization_manager(mine)
        assert get_organization_manager() is mine
    finally:
        set_organization_manager(None)


class TestMachineId:
    """The id of the machine: where it is from, and that it stays."""

    def test_the_setting_comes_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PETAL_MACHINE_ID", "from-the-environment")
        assert find_machine_id(tmp_path, given="set", thing_name="Instance-abc") == MachineId("set", "setting")
        assert find_machine_id(tmp_path, thing_name="Instance-abc") == MachineId("from-the-environment", "setting")
        assert OrganizationManager(machine_id="set").machine_id == "set"
        assert OrganizationManager().machine_id == "from-the-environment"

    def test_an_unusable_setting_is_told_and_ignored(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        assert find_machine_id(tmp_path, given="a/b", thing_name="Instance-abc") == MachineId("abc", "thing")
        assert "'a/b' cannot be a machine id" in caplog.text

    def test_the_things_name_is_kept(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """So that it stays when the file of provisioning goes."""
        assert find_machine_id(tmp_path, thing_name="Instance-abc") == MachineId("abc", "thing")
        assert find_machine_id(tmp_path) == MachineId("abc", "file")
        assert find_machine_id(tmp_path, thing_name="def") == MachineId("def", "thing")
        assert "the machine id is def from now on" in caplog.text
        assert find_machine_id(tmp_path, thing_name="../x") == MachineId("def", "file")

    def test_without_anything_it_is_made_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        made = find_machine_id(tmp_path / "new")
        assert made.source == "hardware"
        assert find_machine_id(tmp_path / "new") == MachineId(made.value, "file")
        assert [one.name for one in (tmp_path / "new").iterdir()] == ["machine-id"]
        assert find_machine_id(tmp_path / "other").value == made.value  # of the same facts

    def test_a_damaged_file_is_kept_and_made_anew(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        made = find_machine_id(tmp_path)
        (tmp_path / "machine-id").write_bytes(b"\0\0\0\0")
        assert find_machine_id(tmp_path).value == made.value
        assert "holds no machine id" in caplog.text
        assert (tmp_path / "machine-id.unusable").read_bytes() == b"\0\0\0\0"
        assert (tmp_path / "machine-id").read_text() == f"{made.value}\n"

    def test_where_nothing_can_be_kept_it_is_told(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        (tmp_path / "in").write_text("no directory")
        with caplog.at_level(logging.WARNING):
            assert find_machine_id(tmp_path / "in").value == find_machine_id(tmp_path / "good").value
        assert "cannot be kept" in caplog.text

    def test_the_facts_that_count(self, tmp_path: Path) -> None:
        """The first real interface and the installation; not interfaces that software made or re-named addresses."""
        installation = tmp_path / "machine-id"
        installation.write_text("0123\n")

        def interface(name: str, address: str, *, real: bool = True) -> None:
            (tmp_path / "net" / name).mkdir(parents=True)
            (tmp_path / "net" / name / "address").write_text(f"{address}\n")
            if real:
                (tmp_path / "net" / name / "device").mkdir()

        def made() -> str:
            return _made(tmp_path / "net", installation)

        alone = made()
        interface("lo", "00:00:00:00:00:00", real=False)
        interface("docker0", "00:11:22:33:44:55", real=False)
        interface("eth5", "02:11:22:33:44:55")
        assert made() == alone
        interface("wlan0", "00:11:22:33:44:66")
        with_radio = made()
        interface("eth0", "00:11:22:33:44:77")
        with_cable = made()
        assert len({alone, with_radio, with_cable}) == 3
        interface("eth1", "00:11:22:33:44:88")
        assert made() == with_cable
        assert len(made()) == 32
        installation.unlink()
        shutil.rmtree(tmp_path / "net")
        assert made() != made()  # random: that is why it is kept

    async def test_the_manager_keeps_it_when_the_file_goes(self, tmp_path: Path) -> None:
        """It changes only when provisioning names another machine."""
        async with running(tmp_path) as manager:
            first = manager.machine_id
            assert first is not None
            write(manager.file_path, thing("ORG1"))
            await becomes(manager, "ORG1")
            assert manager.machine_id == "abc"
            shutil.rmtree(tmp_path / "data")
            manager.file_path.unlink()
            await becomes(manager, None)
            assert manager.machine_id == "abc"
