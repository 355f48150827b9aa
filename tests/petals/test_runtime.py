"""The runtime of petals: found, started in order, kept, described; on a real server, with petals of a real package."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.errors import ReplyError
from petalbus.daemon.petals.control import answer_petals
from petalbus.daemon.petals.errors import UnknownPetal
from petalbus.daemon.petals.manager import PetalManager

from .place import HEAD, Place
from support.servers import RealServer

ORDER = """
STEPS = []
class P(Petal):
    name, version = "orderly", "1.2"
    use_mqtt_proxy = True
    def __init__(self):
        super().__init__()
        STEPS.append("init")
    def inject_proxies(self, proxies):
        super().inject_proxies(proxies)
        STEPS.append("proxies")
    def startup(self):
        asyncio.create_task(asyncio.sleep(0))
        assert self._loop is None
        STEPS.append("startup")
        async def late(topic, message): pass
        late.__mqtt_action__ = {"command": "late"}
        self.late = late
    async def _setup_mqtt_topics(self):
        assert self._loop is asyncio.get_running_loop()
        STEPS.append("mqtt topics")
    async def _setup_mqtt_actions(self):
        STEPS.append("mqtt actions")
        return await super()._setup_mqtt_actions()
    async def _setup_cloud(self): STEPS.append("cloud")
    async def async_startup(self): STEPS.append("async_startup")
    async def async_shutdown(self): STEPS.append("async_shutdown")
    def shutdown(self): STEPS.append("shutdown")
    @on("work")
    async def work(self, record): return {"steps": STEPS}
"""


def thing(place: Place, organization: str | None) -> None:
    told = {"thing": {"thingName": "Instance-m1", "lastReported": {"organizationId": organization}}}
    (place.folder / "thing.json").write_text(json.dumps(told))


async def test_the_order_of_a_petals_life(place: Place, ground: Bus) -> None:
    """S-218, S-219, S-220, S-221, S-222, S-223, S-224, C-14: as the contract says, to the end."""
    thing(place, "ORG1")
    place.petal("orderly", ORDER)
    await place.start()
    told = await place.until("orderly", "running")
    assert (told["version"], told["isolation"], told["target"]) == ("1.2", "daemon", "orderly:P")
    steps = (await ground.request("orderly", "work", {}, timeout=5)).data["steps"]
    begin = ["init", "proxies", "startup", "mqtt topics", "mqtt actions", "cloud", "async_startup"]
    assert steps == begin
    assert place.manager is not None
    await place.manager.stop()
    assert [*begin, "async_shutdown", "shutdown"] == sys.modules["orderly"].STEPS


async def test_mqtt_is_set_up_when_the_organisation_appears(place: Place, ground: Bus) -> None:
    """S-207, S-209, S-223, S-242: without a restart, and once."""
    place.petal("orderly", ORDER)
    await place.start()
    await place.until("orderly", "running")
    assert "mqtt topics" not in sys.modules["orderly"].STEPS
    thing(place, "ORG1")
    end = time.monotonic() + 10
    while "mqtt actions" not in sys.modules["orderly"].STEPS:
        assert time.monotonic() < end
        await asyncio.sleep(0.02)
    thing(place, "ORG2")
    await asyncio.sleep(0.1)
    assert sys.modules["orderly"].STEPS.count("mqtt topics") == 1


async def test_a_petal_waits_for_what_it_needs(place: Place, server: RealServer) -> None:
    """S-014, S-015, S-016, S-080: it is not started, the reason is shown; it starts as soon as the proxy is there."""
    place.petal(
        "needy",
        """
        class P(Petal):
            name = "needy"
            def get_required_proxies(self): return ["redis", "bucket"]
            def get_optional_proxies(self): return ["ftp_mavlink"]
            def startup(self):
                assert self.get_proxy("redis") and self.get_proxy("bucket")
                assert self.get_proxy("ftp_mavlink") is None
        """,
    )
    await place.start()
    told = await place.until("needy", "waiting")
    assert "bucket (not configured" in told["reason"]
    assert "redis" not in told["reason"]
    assert place.manager is not None
    bucket: Any = place.manager._surroundings.proxies.mapping["bucket"]
    bucket.bucket_name, bucket.session_token_url = "logs", "http://127.0.0.1:1/token"
    await bucket.start()
    await place.until("needy", "running")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("raise OSError('no camera')", "no camera"),
        ("class P: pass", "inherits from Petal"),
        ("class P(Petal):\n    name = 'bad'\n    def __init__(self): raise KeyError('x')", "KeyError"),
        ("class P(Petal):\n    name = 'bad'\n    def startup(self): raise KeyError('y')", "KeyError"),
        ("class P(Petal):\n    name = 'no good {}'", "no good"),
        ("class P(Petal):\n    name = 'bad'\n    @on('a')\n    async def a(self): pass", "must take the record"),
    ],
)
async def test_one_that_fails_is_shown_and_touches_no_other(place: Place, ground: Bus, code: str, says: str) -> None:
    """Whatever goes wrong in it: the reason and the trace are kept; the others run."""
    (place.folder / "bad.py").write_text(HEAD + code)
    place.paths.append("bad:P")
    place.petal("good", "class P(Petal):\n    name = 'good'\n    @on('hi')\n    async def hi(self, record): return 1")
    await place.start(petals_restarts=0)
    told = await place.until("bad", "failed")
    assert says in told["reason"]
    assert told["trace"]
    assert (await ground.request("good", "hi", {}, timeout=5)).data == 1


async def test_two_petals_of_one_name(place: Place) -> None:
    """The second is refused with a reason that names the first."""
    place.petal("one", "class P(Petal):\n    name = 'twin'")
    place.petal("two", "class Q(Petal):\n    name = 'twin'", target="Q")
    await place.start()
    assert place.manager is not None
    end = time.monotonic() + 10
    while True:
        told = [one for one in place.manager.describe() if one["name"] == "twin"]
        if sorted(one["state"] for one in told) == ["failed", "running"]:
            break
        assert time.monotonic() < end, told
        await asyncio.sleep(0.02)
    (refused,) = [one for one in told if one["state"] == "failed"]
    assert "twin" in refused["reason"]


async def test_enable_disable_restart_reload(place: Place, ground: Bus) -> None:
    """At run time, one at a time; reload takes the files as they are; a name that nobody has is refused."""
    code = "class P(Petal):\n    name = 'toggle'\n    @on('v')\n    async def v(self, record): return {}"
    place.petal("toggle", code.format(1))
    place.petal("bystander", "class B(Petal):\n    name = 'bystander'", target="B")
    manager = await place.start()
    await place.until("toggle", "running")
    since = (await place.until("bystander", "running"))["for_s"]
    assert (await manager.act("toggle", "disable"))["state"] == "disabled"
    with pytest.raises(Exception, match=r"no reply"):
        await ground.request("toggle", "v", {}, timeout=0.2)
    assert (await manager.act("toggle", "enable"))["state"] == "running"
    assert (await ground.request("toggle", "v", {}, timeout=5)).data == 1
    place.petal("toggle", code.format(22))
    assert (await manager.act("toggle", "restart"))["state"] == "running"
    assert (await ground.request("toggle", "v", {}, timeout=5)).data == 1
    assert (await manager.act("toggle", "reload"))["state"] == "running"
    assert (await ground.request("toggle", "v", {}, timeout=5)).data == 22
    with pytest.raises(UnknownPetal, match=r"known petals: bystander, .*toggle"):
        await manager.act("nobody", "enable")
    with pytest.raises(ValueError, match="no action"):
        await manager.act("toggle", "explode")
    await manager.act("toggle", "disable")
    assert place.told("bystander")["for_s"] >= since
    await manager.stop()
    second = await place.start()
    assert place.told("toggle")["state"] == "disabled", "what was decided holds over a restart"
    assert second is place.manager


async def test_a_petal_that_goes_on_failing_is_given_up_until_somebody_looks(place: Place, ground: Bus) -> None:
    """Restarts with pauses, then no more; a restart by hand gives it all its chances again."""
    place.petal(
        "flaky",
        """
        import pathlib
        GOOD = pathlib.Path(__file__).with_name("good")
        class P(Petal):
            name = "flaky"
            def startup(self):
                if not GOOD.exists(): raise OSError("no sensor")
        """,
    )
    manager = await place.start(petals_restarts=1)
    told = await place.until("flaky", "failed")
    end = time.monotonic() + 10
    while "not tried again" not in ((told := place.told("flaky"))["reason"] or ""):
        assert time.monotonic() < end, told
        await asyncio.sleep(0.02)
    assert told["restarts"] == 2
    (place.folder / "good").touch()
    assert (await manager.act("flaky", "restart"))["state"] == "running"


async def test_handlers_that_fail_in_a_row_open_the_circuit(place: Place, ground: Bus) -> None:
    """The petal is stopped and started again; one that answers with an error of its own has not failed."""
    place.petal(
        "breaking",
        """
        from petalbus import HandlerError
        LIVES = []
        class P(Petal):
            name = "breaking"
            def startup(self): LIVES.append(1)
            @on("bad", max_attempts=1)
            async def bad(self, record): raise OSError("motor")
            @on("refuse")
            async def refuse(self, record): raise HandlerError("no", error_code="NO")
        """,
    )
    await place.start()
    await place.until("breaking", "running")
    for _ in range(20):
        with pytest.raises(ReplyError):
            await ground.request("breaking", "refuse", {}, timeout=5)
    assert len(sys.modules["breaking"].LIVES) == 1
    for _ in range(10):
        with pytest.raises(ReplyError):
            await ground.request("breaking", "bad", {}, timeout=5)
    end = time.monotonic() + 10
    while len(sys.modules["breaking"].LIVES) < 2:
        assert time.monotonic() < end, place.told("breaking")
        await asyncio.sleep(0.02)
    assert (await place.until("breaking", "running"))["restarts"] == 1


async def test_handlers_keep_to_what_on_declared(place: Place, ground: Bus) -> None:
    """Time, least priority, and order by a member of the payload."""
    place.petal(
        "strict",
        """
        RUNNING, MOST = {}, {}
        class P(Petal):
            name = "strict"
            @on("slow", timeout=0.1)
            async def slow(self, record): await asyncio.sleep(5)
            @on("urgent", priority=3)
            async def urgent(self, record): return "done"
            @on("lens", concurrency=None, key="lens")
            async def lens(self, record):
                lens = record.data["lens"]
                RUNNING[lens] = RUNNING.get(lens, 0) + 1
                MOST[lens] = max(MOST.get(lens, 0), RUNNING[lens])
                MOST["all"] = max(MOST.get("all", 0), sum(RUNNING.values()))
                await asyncio.sleep(0.02)
                RUNNING[lens] -= 1
                return 1
        """,
    )
    await place.start(petals_concurrency=8)
    await place.until("strict", "running")
    with pytest.raises(ReplyError, match="did not end within"):
        await ground.request("strict", "slow", {}, timeout=5)
    with pytest.raises(ReplyError, match="priority 3"):
        await ground.request("strict", "urgent", {}, priority=2, timeout=5)
    assert (await ground.request("strict", "urgent", {}, priority=3, timeout=5)).data == "done"
    asks = [ground.request("strict", "lens", {"lens": n % 2}, key=f"k{n}", timeout=10) for n in range(12)]
    assert {reply.data for reply in await asyncio.gather(*asks)} == {1}
    most = sys.modules["strict"].MOST
    assert (most[0], most[1]) == (1, 1), "one lens takes one picture at a time"
    assert most["all"] == 2, "two lenses work side by side"


async def test_a_petal_that_holds_up_the_loop_is_named(place: Place, ground: Bus) -> None:
    """With the line it was at, and counted."""
    place.petal(
        "blocking",
        """
        import time
        class P(Petal):
            name = "blocking"
            @on("block")
            async def block(self, record): time.sleep(0.8)
        """,
    )
    await place.start()
    await place.until("blocking", "running")
    await ground.request("blocking", "block", {}, timeout=5)
    end = time.monotonic() + 5
    while not place.told("blocking")["loop_blocks"]:
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


async def test_tasks_that_a_petal_leaves_behind_are_ended(place: Place) -> None:
    """And nothing of the bus is ended with them."""
    place.petal(
        "messy",
        """
        TASKS = []
        class P(Petal):
            name = "messy"
            async def forever(self): await asyncio.Event().wait()
            def startup(self): TASKS.append(asyncio.create_task(self.forever()))
        """,
    )
    manager = await place.start()
    await place.until("messy", "running")
    await manager.act("messy", "disable")
    (task,) = sys.modules["messy"].TASKS
    assert task.cancelled()


async def test_it_answers_on_the_bus(place: Place, server: RealServer, bus_name: str, ground: Bus) -> None:
    """What `petalbus petals` asks for: a list with states, and actions with their result or refusal."""
    place.petal("one", "class P(Petal):\n    name = 'one'")
    holder: list[PetalManager] = []
    async with Bus(server.url, app="petalbus", bus=bus_name) as daemon:
        answer_petals(daemon, lambda: holder[0] if holder else None)
        await daemon.listen()
        holder.append(await place.start())
        await place.until("one", "running")
        ask: Callable[[dict[str, Any]], Any] = lambda data: ground.request("petalbus", "petals", data, timeout=10)  # noqa: E731
        told = (await ask({"action": "list"})).data
        assert [(one["name"], one["state"]) for one in told["petals"] if one["name"] == "one"] == [("one", "running")]
        assert told["states"]["running"] == 1
        assert told["proxies"]["redis"] == {"ready": True, "reason": None}
        assert told["proxies"]["ftp_mavlink"]["reason"] == "MAVLink connection not established"
        assert (await ask({"action": "disable", "name": "one"})).data["petal"]["state"] == "disabled"
        for data, code in (({"action": "enable"}, "NO_NAME"), ({"action": "enable", "name": "x"}, "UNKNOWN_PETAL")):
            with pytest.raises(ReplyError) as refused:
                await ask(data)
            assert refused.value.error_code == code


async def test_templates_come_before_startup(place: Place) -> None:
    """From the folder beside the petal's module, under the name ``default``."""
    (place.folder / "pages").mkdir()
    (place.folder / "pages" / "hello.html").write_text("Hello {{ name }}")
    place.petal(
        "paged",
        """
        SEEN = []
        class P(Petal):
            name, template_dir = "paged", "pages"
            def startup(self): SEEN.append(self.templates["default"].get_template("hello.html").render(name="<b>"))
        """,
    )
    await place.start()
    await place.until("paged", "running")
    assert sys.modules["paged"].SEEN == ["Hello &lt;b&gt;"]
