"""The harness: a petal's whole life, what is sent and expected, HTTP and websockets; alike on both buses."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import HTMLResponse
from starlette.websockets import WebSocket

from petalbus import Context, HandlerError, Record, ReplyError
from petalbus.petals import Petal, http_action, on, websocket_action
from petalbus.petals.hosting import PetalNotStarted
from petalbus.petals.proxies.base import BaseProxy
from petalbus.testing import NotExpected, PetalHarness, TestBus, WebSocketClosed

from support.procs import child_environment

pytest_plugins = ["petalbus.petals.testing.plugin"]

ORDER: list[str] = []


class Counter(BaseProxy):
    """A proxy of a test's own."""

    kind = "counter"

    def __init__(self, url: str = "") -> None:
        super().__init__()
        self.url = url
        self.value = 0

    async def start(self) -> None:
        ORDER.append("proxy starts")
        self._set_ready(True)

    async def stop(self) -> None:
        ORDER.append("proxy stops")
        self._set_ready(False, "stopped")


class Camera(Petal):
    name = "camera"
    version = "1.2"

    def get_required_proxies(self) -> list[str]:
        return ["counter"]

    def inject_proxies(self, proxies: Any) -> None:
        super().inject_proxies(proxies)
        ORDER.append("inject")

    def startup(self) -> None:
        asyncio.get_running_loop()
        assert self.bus.app == "camera"
        assert self._loop is None
        ORDER.append("startup")

    async def async_startup(self) -> None:
        assert self._loop is asyncio.get_running_loop()
        ORDER.append("async_startup")

    async def async_shutdown(self) -> None:
        assert self.get_proxy("counter") is not None
        ORDER.append("async_shutdown")

    def shutdown(self) -> None:
        ORDER.append("shutdown")

    @on("photo.take", redelivery="rerun")
    async def take(self, record: Record, context: Context) -> dict[str, Any]:
        count = record.data["count"]
        if count > 10:
            raise HandlerError("the card is full", error_code="CARD_FULL")
        await context.progress({"left": count})
        await self.bus.publish("gallery", "photo", {"number": count})
        return {"taken": count}

    @on("photo.slow", redelivery="rerun", timeout=0.05)
    async def slow(self, record: Record) -> None:
        await asyncio.sleep(5)

    @on("photo.urgent", priority=3)
    async def urgent(self, record: Record) -> dict[str, int]:
        return {"priority": int(record.priority)}

    @http_action("GET", "/shots")
    async def shots(self) -> dict[str, Any]:
        return {"shots": self.get_proxy("counter").value}

    @websocket_action("/live")
    async def live(self, websocket: WebSocket) -> None:
        await websocket.accept()
        async for value in websocket.iter_json():
            if value == "leave":
                await websocket.close(4000, "as you wish")
                return
            await websocket.send_json({"saw": value})


def camera(bus: TestBus, **options: Any) -> PetalHarness[Camera]:
    return PetalHarness(Camera, bus=bus, proxies={"counter": lambda bus: Counter(bus.url)}, **options)


async def test_s_014_the_life_of_a_petal_is_the_runtimes(each_bus: TestBus) -> None:
    ORDER.clear()
    async with camera(each_bus) as h:
        assert h.petal.version == "1.2"
        assert h.petal.get_proxy("counter").url == each_bus.url
        await h.request("photo.take", {"count": 1})
    starting, stopping = ["inject", "startup", "async_startup"], ["async_shutdown", "shutdown"]
    assert ["proxy starts", *starting, *stopping, "proxy stops"] == ORDER


async def test_s_014_a_required_proxy_that_is_missing_is_named(each_bus: TestBus) -> None:
    with pytest.raises(PetalNotStarted, match="'camera' requires the proxies counter; there are: redis") as refused:
        async with PetalHarness(Camera, bus=each_bus, proxies={"redis": object()}):
            raise AssertionError("it must not start")
    assert refused.value.missing == ("counter",)


async def test_what_a_petal_raises_at_its_start_comes_out_and_nothing_is_left(each_bus: TestBus) -> None:
    class Broken(Petal):
        name = "broken"

        async def async_startup(self) -> None:
            raise OSError("no lens")

    with pytest.raises(OSError, match="no lens"):
        async with PetalHarness(Broken, bus=each_bus):
            raise AssertionError("it must not start")
    left = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert left == []


async def test_send_and_expect(each_bus: TestBus) -> None:
    """Receipts, final replies and others, records on topics, in the order in which they came."""
    async with camera(each_bus) as h:
        receipt = await h.send("photo.take", {"count": 2}, priority=3)
        assert (await h.expect_reply(receipt)).data == {"taken": 2}
        assert (await h.expect_reply(receipt, kind="progress")).data == {"left": 2}
        assert (await h.expect(type="photo", place="topic:gallery", where={"number": 2})).source == "camera"
        sent = await h.expect(place="inbox:camera", type="photo.take")
        assert (sent.id, sent.priority) == (receipt.id, 3)
        await h.send("photo.take", {"count": 3})
        assert (await h.expect_reply(where=lambda record: record.data["taken"] == 3)).reply_to != receipt.id
        await h.catch_up()
        places = {one.place for one in h.records}
        assert places == {"inbox:camera:3", "inbox:camera:2", "replies:tester", "topic:gallery"}


async def test_each_record_is_expected_once(each_bus: TestBus) -> None:
    async with camera(each_bus) as h:
        for count in (1, 1):
            await h.request("photo.take", {"count": count})
        first, second = await h.expect(type="photo"), await h.expect(type="photo")
        assert first.stream_id != second.stream_id
        with pytest.raises(NotExpected):
            await h.expect(type="photo", within=0.05)


async def test_what_does_not_come_is_told_with_what_came(each_bus: TestBus) -> None:
    async with camera(each_bus) as h:
        began = time.monotonic()
        await h.send("photo.take", {"count": 1})
        with pytest.raises(NotExpected) as error:
            await h.expect(type="video", place="topic:gallery", within=0.3)
        assert 0.3 <= time.monotonic() - began < 3
    text = str(error.value)
    assert "a record with type='video', place='topic:gallery' did not come within 0.3 s" in text
    assert 'topic:gallery: photo from camera {"number":1}' in text
    assert "inbox:camera:2: photo.take from tester" in text


async def test_nothing_may_be_expected_too(each_bus: TestBus) -> None:
    async with camera(each_bus) as h:
        await h.expect_none(type="photo", within=0.05)
        await h.request("photo.take", {"count": 1})
        with pytest.raises(NotExpected, match="which must not"):
            await h.expect_none(type="photo", within=1)


async def test_what_came_before_the_harness_is_not_captured(each_bus: TestBus) -> None:
    async with each_bus, each_bus.client("other") as other:
        await other.publish("gallery", "photo", {"number": 0})
        async with camera(each_bus) as h:
            await h.publish("gallery", "photo", {"number": 1})
            assert (await h.expect(type="photo")).data == {"number": 1}
            await h.expect_none(type="photo", within=0.05)


async def test_requests_raise_as_the_bus_does(each_bus: TestBus) -> None:
    async with camera(each_bus) as h:
        told: list[Any] = []
        await h.request("photo.take", {"count": 1}, on_progress=lambda record: told.append(record.data))
        assert told == [{"left": 1}]
        with pytest.raises(ReplyError, match="CARD_FULL"):
            await h.request("photo.take", {"count": 11})
        with pytest.raises(ReplyError, match=r"HANDLER_TIMEOUT.*0\.05 s"):
            await h.request("photo.slow", {})
        with pytest.raises(ReplyError, match="PRIORITY_TOO_LOW"):
            await h.request("photo.urgent", {})
        assert (await h.request("photo.urgent", {}, priority=4)).data == {"priority": 4}


async def test_dead_letters_are_captured(each_bus: TestBus) -> None:
    async with camera(each_bus) as h:
        await h.send("photo.unknown", {})
        assert (await h.expect(place="dead:camera")).type == "photo.unknown"


async def test_http_and_websockets_are_the_petals_own(each_bus: TestBus) -> None:
    async with camera(each_bus) as h:
        h.petal.get_proxy("counter").value = 7
        answer = await h.http.get("/shots")
        assert (answer.status_code, answer.json()) == (200, {"shots": 7})
        assert (await h.http.get("/nothing")).status_code == 404
        async with h.websocket("/live") as socket:
            await socket.send_json([1, 2])
            assert await socket.receive_json() == {"saw": [1, 2]}
            await socket.send_json("leave")
            with pytest.raises(WebSocketClosed, match="as you wish") as closed:
                await socket.receive_text()
            assert closed.value.code == 4000
        async with h.websocket("/live") as socket:  # we leave first
            await socket.send_json(1)
        with pytest.raises(WebSocketClosed):
            async with h.websocket("/nothing"):
                raise AssertionError("there is no such websocket")


async def test_templates_and_static_files_are_served_as_in_the_daemon(each_bus: TestBus, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<b>{{ word }}</b>")
    (tmp_path / "logo.txt").write_text("logo")

    class Pages(Petal):
        name = "pages"
        template_dir = str(tmp_path)
        static_dir = str(tmp_path)

        @http_action("GET", "/page")
        async def page(self) -> HTMLResponse:
            return HTMLResponse(self.templates["default"].env.get_template("page.html").render(word="hi"))

    async with PetalHarness(Pages, bus=each_bus) as h:
        assert (await h.http.get("/page")).text == "<b>hi</b>"
        assert (await h.http.get("http://petal/static/pages/logo.txt")).text == "logo"


async def test_a_task_that_is_left_running_is_ended_and_named(
    each_bus: TestBus, caplog: pytest.LogCaptureFixture
) -> None:
    class Leaky(Petal):
        name = "leaky"

        async def async_startup(self) -> None:
            self.left = asyncio.create_task(asyncio.Event().wait(), name="leaky.forgotten")

    async with PetalHarness(Leaky, bus=each_bus) as h:
        left = h.petal.left
    assert left.cancelled()
    assert "petal leaky has left the task leaky.forgotten running" in caplog.text


async def test_two_petals_speak_over_one_bus(each_bus: TestBus) -> None:
    class Director(Petal):
        name = "director"

        @on("film")
        async def film(self, record: Record) -> Any:
            reply = await self.bus.request("camera", "photo.take", {"count": 5})
            return {"camera said": reply.data}

    async with camera(each_bus), PetalHarness(Director, bus=each_bus, app="producer") as h:
        assert (await h.request("film", {})).data == {"camera said": {"taken": 5}}


async def test_what_waits_in_the_inbox_is_done_after_the_start(each_bus: TestBus) -> None:
    async with camera(each_bus) as h:
        await h.stop()
        receipt = await h.send("photo.take", {"count": 4})
        await h.expect_none(place="topic:gallery", within=0.05)
        with pytest.raises(RuntimeError, match="no petal lives"):
            _ = h.petal
        await h.start()
        assert (await h.expect_reply(receipt)).data == {"taken": 4}


EITHER_MODE = """
import pytest
from petalbus.petals import Petal, on
from petalbus.testing import PetalHarness

class Yes(Petal):
    name = "yes"

    @on("ask")
    async def ask(self, record):
        return {"yes": True}

@pytest.mark.asyncio
async def test_with_the_fixture(memory_bus):
    async with PetalHarness(Yes, bus=memory_bus) as h:
        assert (await h.request("ask", {})).data == {"yes": True}

def test_without_any():
    import asyncio

    async def main():
        async with PetalHarness(Yes) as h:
            assert (await h.request("ask", {})).data == {"yes": True}

    asyncio.run(main())
"""


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_the_fixtures_work_in_both_modes_where_petalbus_is_installed(mode: str, tmp_path: Path) -> None:
    """The entry point of the package's metadata loads them: nothing is imported or configured by the test."""
    info = tmp_path / "site" / "petalbus-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: petalbus\nVersion: 0\n")
    (info / "entry_points.txt").write_text(
        "[pytest11]\npetalbus.petals.testing.plugin = petalbus.petals.testing.plugin\n"
    )
    (tmp_path / "test_yes.py").write_text(EITHER_MODE)
    environment = child_environment()
    environment["PYTHONPATH"] += f":{tmp_path / 'site'}"
    options = ["-q", "-W", "error", "-o", f"asyncio_mode={mode}", "-o", "asyncio_default_fixture_loop_scope=function"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "test_yes.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert "2 passed" in done.stdout, done.stdout + done.stderr
