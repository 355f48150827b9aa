"""One scenario that every server, transport and event loop must carry: the whole of the bus in a few seconds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bus.clients import until
from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.errors import IdConflict, ReplyError
from petalbus.daemon.bus.handlers import Context, Progress
from petalbus.daemon.bus.options import BusOptions
from petalbus.schemas.compact import CompactEntry, CompactForm
from petalbus.schemas.record import Record
from petalbus.schemas.vocabulary import Priority, Status


async def scenario(url: str, bus_name: str) -> None:
    """Send, handle, answer, fail, bury, mend, cancel, expire, publish; an AssertionError where it is not as
    promised.
    """
    options = BusOptions(retry_first=0.01, heartbeat=0.1, dead_after=0.5)
    app, gcs = (Bus(url, app=name, bus=bus_name, options=options) for name in ("vehicle", "gcs"))
    hold = asyncio.Event()
    _handlers(app, hold)
    async with app, gcs:
        await _answers(gcs)
        await _identity(gcs)
        await _order(app, gcs)
        await _failure(gcs)
        await _waiting(gcs, hold)
        await _topics(app, gcs)
        names = {one.app: one.status for one in await gcs.applications()}
        assert names == {"vehicle": "online", "gcs": "online"}
        assert await _unsettled(gcs) == 0


def _handlers(app: Bus, hold: asyncio.Event) -> None:
    @app.on("command", redelivery="report")
    async def command(record: Record, told: Context) -> dict[str, Any]:
        await told.accepted()
        return {"status": "success", "result": record.data["command"]}

    @app.on("steps")
    async def steps(_record: Record) -> AsyncIterator[Any]:
        yield Progress({"step": 1})
        yield {"done": True}

    @app.on("flaky")
    async def flaky(_record: Record, told: Context) -> dict[str, int]:
        if told.attempt < 3:
            raise OSError("not yet")
        return {"attempt": told.attempt}

    @app.on("fails", max_attempts=2)
    async def fails(record: Record) -> dict[str, bool]:
        if not record.data.get("mended"):
            raise OSError("never")
        return {"ok": True}

    @app.on("hold", concurrency=1)
    async def held(_record: Record) -> dict[str, bool]:
        await hold.wait()
        return {"ok": True}

    @app.on("n", concurrency=None)
    async def number(record: Record) -> dict[str, Any]:
        return {"n": record.data["n"]}


async def _answers(gcs: Bus) -> None:
    notes: list[Any] = []
    reply = await gcs.request(
        "vehicle",
        "command",
        {"command": "arm"},
        priority=Priority.HIGH,
        on_progress=lambda note: notes.append(note.kind),
    )
    assert reply.data == {"status": "success", "result": "arm"}
    assert (await gcs.request("vehicle", "steps", {}, on_progress=lambda note: notes.append(note.kind))).data == {
        "done": True
    }
    assert [str(kind) for kind in notes] == ["accepted", "progress"]
    with pytest.raises(ReplyError, match="nobody handles"):
        await gcs.request("vehicle", "unheard", {})


async def _identity(gcs: Bus) -> None:
    first = await gcs.send("vehicle", "n", {"n": 0}, id="same")
    again = await gcs.send("vehicle", "n", {"n": 0}, id="same")
    assert (again.stream_id, again.duplicate) == (first.stream_id, True)
    with pytest.raises(IdConflict):
        await gcs.send("vehicle", "n", {"n": 0}, id="same", priority=Priority.LOW)


async def _order(app: Bus, gcs: Bus) -> None:
    replies = await asyncio.gather(
        *(gcs.request("vehicle", "n", {"n": n}, priority=Priority(1 + n % 4), timeout=20) for n in range(400))
    )
    assert [reply.data["n"] for reply in replies] == list(range(400))
    for level in Priority:
        own = [reply for n, reply in enumerate(replies) if n % 4 == level - 1]
        order = [tuple(map(int, str(reply.stream_id).split("-"))) for reply in own]
        assert order == sorted(order), f"{level.name} was answered out of order"
    async with asyncio.timeout(10):  # a reply may be here before the one who sent it knows that it is written
        while app.statistics()["consumer"]["held"]:
            await asyncio.sleep(0.005)


async def _failure(gcs: Bus) -> None:
    assert (await gcs.request("vehicle", "flaky", {})).data == {"attempt": 3}
    with pytest.raises(ReplyError, match="never"):
        await gcs.request("vehicle", "fails", {}, id="poison")
    letters = {letter.record.id: letter for letter in await gcs.dead.list("vehicle")}
    assert letters["poison"].attempts == 2
    await gcs.dead.requeue("vehicle", letters["poison"].entry, data={"mended": True})
    await _status(gcs, "poison", Status.COMPLETED)


async def _waiting(gcs: Bus, hold: asyncio.Event) -> None:
    await gcs.send("vehicle", "hold", {}, id="h1")
    await gcs.send("vehicle", "hold", {}, id="h2")
    await gcs.send("vehicle", "hold", {}, id="h3", deadline=0.05)
    await _status(gcs, "h1", Status.PROCESSING)
    await _status(gcs, "h2", Status.DELIVERED)
    assert await gcs.cancel("h2")
    await _status(gcs, "h2", Status.CANCELLED)
    await asyncio.sleep(0.06)  # the deadline of h3 is a matter of time
    hold.set()
    await _status(gcs, "h1", Status.COMPLETED)
    await _status(gcs, "h3", Status.TIMEOUT)


async def _topics(app: Bus, gcs: Bus) -> None:
    form = CompactForm("mavlink.rx", "mavlink.", "gcs", names={"0": "HEARTBEAT"})
    async with app.subscribe("news") as news, app.subscribe("mavlink.rx", start="oldest") as frames:
        await gcs.publish("news", "n", {"n": 1})
        assert (await anext(aiter(news))).data == {"n": 1}
        await gcs.publish_compact(form, [CompactEntry("0", 1, b"\xfd")])
        assert (await anext(aiter(frames))).type == "mavlink.HEARTBEAT"


async def _status(gcs: Bus, message_id: str, status: Status) -> None:
    async def there() -> bool:
        return await gcs.status(message_id) is status

    await until(there, f"{message_id} is {status}")


async def _unsettled(gcs: Bus) -> int:
    left = 0
    for stream in gcs.keys.inboxes("vehicle").values():
        rows = await gcs.call("XINFO", "GROUPS", stream)
        left += sum(dict(zip(row[::2], row[1::2], strict=True))[b"pending"] for row in rows)
    return left
