"""The runtime of petals when things happen at the same time, under several names, or in a petal's own odd way."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bus.clients import until
from cli.conftest import Buses, Daemon, run_process
from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.errors import ReplyError, RequestTimeout
from petalbus.daemon.http.options import HttpOptions
from petalbus.daemon.petals.manager import PetalManager
from petalbus.petals.owner import acting_for
from petalbus.petals.proxies.mavlink import MavLinkExternalProxy

from .place import Place
from support.procs import child_environment

COUNTED = """
import builtins
LIVES = builtins.__dict__.setdefault("LIVES", [])
class P(Petal):
    name = "counted"
    @on("who")
    async def who(self, record):
        return {"life": LIVES.index(self)}
    async def async_startup(self):
        LIVES.append(self)
        self.open = True
    async def async_shutdown(self):
        await asyncio.sleep(0.3)
        self.open = False
"""


@pytest.fixture
def lives() -> Iterator[list[Any]]:
    """The instances of a petal that were started."""
    import builtins  # where a petal of another module can leave them

    found: list[Any] = builtins.__dict__.setdefault("LIVES", [])
    found.clear()
    yield found
    found.clear()


async def test_a_stop_is_not_cut_short_by_the_next_order(place: Place, ground: Bus, lives: list[Any]) -> None:
    """S-010: whoever gives up waiting, or orders again: an instance ends in order, and before the next one begins."""
    place.petal("counted", COUNTED)
    manager = await place.start()
    await place.until("counted", "running")
    petal = next(one for one in manager._petals.values() if one.name == "counted")
    for _ in range(3):
        ordered = asyncio.create_task(petal.restart(), name="restart")
        await asyncio.sleep(0.1)  # it is in async_shutdown
        ordered.cancel()
        with suppress(asyncio.CancelledError):
            await ordered
        await petal.restart()
        await place.until("counted", "running")
        assert [one.open for one in lives] == [False] * (len(lives) - 1) + [True]
    answers = [(await ground.request("counted", "who", {}, timeout=5)).data["life"] for _ in range(5)]
    assert answers == [len(lives) - 1] * 5
    await manager.act("counted", "disable")
    assert not any(one.open for one in lives)
    with pytest.raises(RequestTimeout):
        await ground.request("counted", "who", {}, timeout=0.3)


async def test_an_order_is_carried_out_also_when_nobody_waits_for_it(place: Place, lives: list[Any]) -> None:
    place.petal("counted", COUNTED)
    manager = await place.start()
    await place.until("counted", "running")
    ordered = asyncio.create_task(manager.act("counted", "restart"), name="act")
    await asyncio.sleep(0.1)
    ordered.cancel()
    await until(lambda: len(lives) == 2, "it is restarted")
    await place.until("counted", "running")


@pytest.mark.parametrize("by", ["counted", "found_as"])
async def test_a_decision_holds_under_each_name_and_after_a_restart(place: Place, lives: list[Any], by: str) -> None:
    """A petal's own name is not known before it was loaded; what was decided by either is known at the next start."""
    place.petal("found_as", COUNTED, target="P")
    manager = await place.start()
    await place.until("found_as", "running")
    found = str(place.told("found_as")["entry_point"])
    await manager.act(found if by == "found_as" else "counted", "disable")
    await manager.stop()
    manager = await place.start()
    await asyncio.sleep(0.2)
    assert place.told("found_as")["state"] == "disabled"
    assert len(lives) == 1
    await manager.act(found, "enable")
    await manager.stop()
    await place.start()
    await place.until("found_as", "running")


@pytest.mark.parametrize("setting", ["petals_disabled", "yaml"])
async def test_a_setting_by_the_petals_own_name_counts(place: Place, lives: list[Any], setting: str) -> None:
    """Also at the first start, when only loading it shows the name."""
    place.petal("found_as", COUNTED)
    settings: dict[str, Any] = {"petals_disabled": "counted"} if setting == "petals_disabled" else {}
    if setting == "yaml":
        (place.data / "proxies.yaml").write_text("petal_dependencies: {counted: [nowhere]}\n")
    await place.start(**settings)
    says = "petals_disabled" if settings else "nowhere"
    await until(lambda: says in (place.told("found_as")["reason"] or ""), "it is not started")
    assert place.told("found_as")["state"] == ("disabled" if settings else "waiting")
    assert not lives


async def test_records_of_one_key_that_are_too_late_do_not_run(place: Place, ground: Bus) -> None:
    """I4: the time passed while it waited for its turn behind others of its key."""
    place.petal(
        "turns",
        """
        RAN = []
        class P(Petal):
            name = "turns"
            @on("go", key="wheel", concurrency=4)
            async def go(self, record):
                RAN.append(record.data["n"])
                await asyncio.sleep(0.6)
        """,
    )
    await place.start()
    await place.until("turns", "running")
    slow = asyncio.create_task(ground.request("turns", "go", {"wheel": 1, "n": 0}, timeout=5, key="a"), name="slow")
    await until(lambda: sys.modules["turns"].RAN == [0], "the first runs")
    with pytest.raises((RequestTimeout, ReplyError)):
        await ground.request("turns", "go", {"wheel": 1, "n": 1}, timeout=0.3, key="b")
    await slow
    await ground.request("turns", "go", {"wheel": 1, "n": 2}, timeout=5, key="c")
    assert sys.modules["turns"].RAN == [0, 2]


async def test_one_that_stops_takes_no_task_of_its_neighbour(place: Place) -> None:
    """Two petals of one package that start together."""
    package = place.folder / "fleet"
    package.mkdir()
    (package / "__init__.py").touch()
    for name in ("nav", "cam"):
        (package / f"{name}.py").write_text(
            "import asyncio\nfrom petalbus.petals import Petal\n"
            f"class P(Petal):\n    name = '{name}'\n"
            "    async def async_startup(self):\n"
            "        self.work = asyncio.create_task(self.loop(), name='loop')\n"
            "        await asyncio.sleep(0.2)\n"
            "    async def loop(self):\n        await asyncio.Event().wait()\n"
        )
        place.paths.append(f"fleet.{name}:P")
    manager = await place.start()
    works = {}
    for name in ("nav", "cam"):
        await until(lambda name=name: (name, "running") in states(manager), "it runs")
        petal = next(one for one in manager._petals.values() if one.name == name)
        works[name] = petal._life._host.petal.work  # type: ignore[union-attr]
    await manager.act("nav", "disable")
    assert works["nav"].cancelled()
    assert not works["cam"].done()


def states(manager: PetalManager) -> set[tuple[str, str]]:
    return {(one["name"], one["state"]) for one in manager.describe()}


@pytest.mark.parametrize("where", ["async_startup", "async_shutdown"])
async def test_a_cancellation_of_its_own_is_its_failure(place: Place, where: str) -> None:
    place.petal(
        "odd",
        f"""
        class P(Petal):
            name = "odd"
            async def {where}(self):
                task = asyncio.create_task(asyncio.sleep(5))
                task.cancel()
                await task
        """,
    )
    manager = await place.start(petals_restarts=0)
    if where == "async_startup":
        told = await place.until("odd", "failed")
        assert "was cancelled" in told["reason"]
    else:
        await place.until("odd", "running")
        await manager.act("odd", "restart")
        await place.until("odd", "running")


async def test_handlers_of_the_vehicle_end_with_their_petal() -> None:
    """Its methods, and closures that it registered while it started."""

    class Watcher:
        async def on_message(self, message: Any) -> None: ...

    async def closure(message: Any) -> None: ...

    async def other(message: Any) -> None: ...

    proxy, petal = MavLinkExternalProxy(), Watcher()
    with acting_for(petal):
        proxy.register_handler("HEARTBEAT", closure)
    proxy.register_handler("ATTITUDE", petal.on_message)
    proxy.register_handler("ATTITUDE", other)
    assert proxy.forget(petal) == 2
    assert len(proxy._handlers) == 1


def test_settings_that_came_as_text_are_read() -> None:
    """A process of its own gets them as JSON."""
    assert HttpOptions.of(SimpleNamespace(petals_root="/opt/petals")).root == Path("/opt/petals")


FORKING = """
import os, time
from petalbus.petals import Petal, on
class P(Petal):
    name = "forking"
    async def async_startup(self):
        self.child = os.fork()
        if self.child == 0:
            time.sleep(600)
            os._exit(0)
    @on("who")
    async def who(self, record):
        return {"pid": os.getpid(), "child": self.child}
"""


@pytest.fixture
def forking(tmp_path: Path) -> Iterator[Daemon]:
    (tmp_path / "forking.py").write_text(FORKING)
    buses = Buses()
    try:
        paths = os.pathsep.join([str(tmp_path), child_environment()["PYTHONPATH"]])
        settings = ("--set", "petals_paths=forking:P", "--set", "petals_isolation=process")
        yield buses.up(*settings, "--set", "http_enabled=false", PYTHONPATH=paths)
    finally:
        buses.close()


def answer(daemon: Daemon) -> dict[str, Any]:
    told = run_process("request", "forking", "who", "{}", "--timeout", "20", "--json", "--data", str(daemon.data))
    found: dict[str, Any] = told.objects[-1]["data"]
    return found


@pytest.mark.processes
@pytest.mark.timeout(120)
async def test_the_death_of_a_process_that_has_forked_is_seen(forking: Daemon) -> None:
    """I2: what it forked holds its lines open; its end counts all the same, and nothing of it is left."""
    forking.ready()
    first = await asyncio.to_thread(answer, forking)
    os.kill(first["pid"], signal.SIGKILL)
    second = await asyncio.to_thread(answer, forking)
    assert second["pid"] != first["pid"]

    def gone() -> bool:
        status = Path(f"/proc/{first['child']}/stat")
        return not status.exists() or " Z " in status.read_text()

    await until(gone, "what it forked is gone")
    os.kill(second["child"], signal.SIGKILL)  # the daemon is killed at the end, and does not see to it any more
