"""When a write is given up, when it is not, and what is kept beside it meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.options import BusOptions
from petalbus.handlers.database import handler as handler_module
from petalbus.handlers.database import link as link_module
from petalbus.handlers.database import words
from petalbus.handlers.database.dynamo_errors import _in_our_words
from petalbus.handlers.database.ended import Ended
from petalbus.handlers.database.errors import Busy, Failing, Forbidden, NoTable

from .conftest import TABLE, World, until
from .http_end import CloudService

BAD = (500, b"poison")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 0.05 s instead of a minute."""
    monkeypatch.setattr(link_module, "_OWN_MOST_S", 0.05)
    monkeypatch.setattr(handler_module, "_ASIDE_MOST_S", 0.05)


def calls_to(cloud: CloudService, answer: tuple[int, bytes], *keys: str) -> list[str]:
    """From now on calls for these items get this answer (no keys: all calls do). Their keys, as they come."""
    seen: list[str] = []

    def trouble(_call: str, body: dict[str, Any]) -> tuple[int, bytes] | None:
        key = str(body.get("filter_value", body.get("partition_value")))
        if keys and key not in keys:
            return None
        seen.append(key)
        return answer

    cloud.trouble = trouble
    return seen


async def test_an_outage_after_a_success(world: World, cloud: CloudService) -> None:
    """S-054: others were done once since it began to fail, then nobody is served: nothing is given up."""
    await world.start(most_tries=5, first_wait=0.01)
    proxy = await world.proxy(wait=0.1)
    seen = calls_to(cloud, BAD, "1")
    assert (await proxy.put_item(TABLE, {"id": "1"}))["queued"]
    await until(lambda: seen)
    assert "queued" not in await (await world.proxy()).put_item(TABLE, {"id": "2"})
    seen = calls_to(cloud, BAD)
    await until(lambda: len(seen) > 30)
    assert await world.dead() == []
    cloud.trouble = lambda _call, _body: None
    await world.idle()
    assert set(cloud.tables[TABLE]) == {"1", "2"}


async def test_an_outage_with_a_crowd(world: World, cloud: CloudService, monkeypatch: pytest.MonkeyPatch) -> None:
    """S-054: more fail at a time than may stay in hands, and nobody is served: nothing is given up or out of order."""
    monkeypatch.setattr(handler_module, "_CROWD", 4)
    handler = await world.start(most_tries=3, first_wait=0.01)
    proxy = await world.proxy(wait=0.01)
    seen = calls_to(cloud, BAD)
    for n in range(3):
        for key in range(12):
            assert (await proxy.update_item(TABLE, str(key), {f"m{n}": n, "n": n}))["queued"]
    await until(lambda: len(set(seen)) == 12 and len(seen) > 150)
    assert handler._failing <= 4
    assert (await world.dead(), handler.link.successes) == ([], 0)
    cloud.trouble = lambda _call, _body: None
    await world.idle()
    counts = handler.statistics()
    assert (counts["superseded"], counts["done"] + counts["repeated"], await world.dead()) == (0, 36, [])
    assert {(one["n"], one["m0"], one["m1"]) for one in cloud.tables[TABLE].values()} == {(2, 0, 1)}
    assert (handler._aside._of, handler._aside._count, handler._failing) == ({}, 0, 0)


async def test_one_that_is_cancelled_while_it_is_aside(
    world: World, cloud: CloudService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S-054: what came after it goes on."""
    monkeypatch.setattr(handler_module, "_CROWD", 1)
    monkeypatch.setattr(handler_module, "_ASIDE_FIRST_S", 0.5)
    monkeypatch.setattr(handler_module, "_ASIDE_MOST_S", 0.5)
    handler = await world.start(first_wait=0.2)
    proxy = await world.proxy(wait=0.05)
    calls_to(cloud, BAD, "1")
    first = await proxy.update_item(TABLE, "1", {"first": True})
    await until(lambda: handler._aside._of)
    assert (await proxy.update_item(TABLE, "1", {"second": True}))["queued"]
    async with world.client("person") as bus:
        await bus.cancel(first["id"])
    cloud.trouble = lambda _call, _body: None
    await world.idle()
    assert ("first" in cloud.tables[TABLE]["1"], cloud.tables[TABLE]["1"]["second"]) == (False, True)
    assert handler._aside._of == {}


async def test_throttling_is_no_fault_of_a_write(world: World, cloud: CloudService) -> None:
    """S-054: 429 again and again while others are done: it is never given up."""
    await world.start(most_tries=3, first_wait=0.01)
    proxy = await world.proxy(wait=0.05)
    seen = calls_to(cloud, (429, b'{"message": "slow down"}'), "1")
    others = await world.proxy()
    assert (await proxy.put_item(TABLE, {"id": "1"}))["queued"]
    for n in range(20):
        before = len(seen)
        assert "queued" not in await others.put_item(TABLE, {"id": "2", "n": n})
        await until(lambda before=before: len(seen) > before)  # type: ignore[misc]  # bound at once
    assert await world.dead() == []
    cloud.trouble = lambda _call, _body: None
    await world.idle()
    assert set(cloud.tables[TABLE]) == {"1", "2"}


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("ThrottlingException", 400, Busy),
        ("ProvisionedThroughputExceededException", 400, Busy),
        ("SlowDown", 503, Busy),
        ("", 429, Busy),
        ("ReplicatedWriteConflictException", 400, Busy),
        ("PriorRequestNotComplete", 400, Busy),
        ("OptInRequired", 403, Forbidden),
        ("ResourceNotFoundException", 400, NoTable),
        ("InternalServerError", 500, Failing),
        ("ItemCollectionSizeLimitExceededException", 400, Failing),
    ],
)
def test_dynamodb_words_for_throttling(code: str, status: int, kind: type[Failing]) -> None:
    """S-054: they are told apart from failures."""
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    assert type(_in_our_words(answer, "PutItem", last=False)) is kind


async def test_a_dead_letter_begins_anew(world: World, cloud: CloudService) -> None:
    """S-054: one that was given up and is tried again has all its tries again, and its old number."""
    await world.start(most_tries=8, first_wait=0.01)
    proxy = await world.proxy(wait=0.05)

    async def given_up() -> int:
        seen = calls_to(cloud, BAD, "1")
        async with asyncio.timeout(20):
            while not await world.dead():
                await proxy.put_item(TABLE, {"id": "2"})
        return len(seen)

    async with world.client("person") as bus:
        calls_to(cloud, BAD, "1")
        old = await proxy.update_item(TABLE, "1", {"n": 2})
        assert await given_up() >= 8
        numbers = words.numbers_key(bus.keys)
        async with asyncio.timeout(10):
            while await bus.ask("HEXISTS", numbers, words.tries_field(old["id"])):
                await asyncio.sleep(0.05)
        assert await bus.ask("HEXISTS", numbers, old["id"])
        await bus.dead.requeue(words.APP, (await bus.dead.list(words.APP))[0].entry)
        assert await given_up() >= 8


async def queued(bus: Bus, key: str) -> str:
    """A write of another program: it is not among the bytes that are counted."""
    data = {"table": TABLE, "key": {"id": key}, "operation": "put", "item": {}}
    return (await bus.send(words.APP, words.WRITE, data, priority=3, key=key)).id


async def test_leaked_bytes_are_given_back(world: World) -> None:
    """S-054: room of a record that was never stored, while writes of other programs wait that nobody counted."""
    async with world.client("other") as bus:
        for n in range(60):
            known = await queued(bus, str(n))
        await bus.call("DEL", bus.keys.ids, bus.keys.ids_before)  # as if the windows had forgotten it
        waiting = words.waiting_key(bus.keys)
        await bus.call("HSET", waiting, "leaked", 500, known, 70, words.BYTES, 570)
        kept = Ended(bus)
        for _ in range(2):
            await kept.look()
            await kept._forget()
        flat = await bus.ask("HGETALL", waiting)
        assert dict(zip(flat[::2], flat[1::2], strict=True)) == {known.encode(): b"70", words.BYTES.encode(): b"70"}


async def test_one_that_does_not_end_is_asked_about_rarely(world: World) -> None:
    """S-054: it was about to end, and has not; when it has ended it is forgotten."""

    async def asked() -> int:
        told = (await bus.ask("INFO", "commandstats")).decode()
        return int(told.split("cmdstat_eval:calls=")[1].split(",")[0]) if "cmdstat_eval:" in told else 0

    quiet = BusOptions(presence=False)  # its heartbeat is a script, too
    async with Bus(world.server.url, app="other", bus=world.bus_name, options=quiet) as bus:
        known = await queued(bus, "1")
        kept = Ended(bus)
        kept.note(known, dead=False)
        running = asyncio.create_task(kept.run())
        try:
            before = await asked()
            await asyncio.sleep(3)
            assert 1 <= await asked() - before <= 5
            await bus.cancel(known)
            await bus.call("DEL", bus.keys.ids)
            kept.note("another", dead=False)
            async with asyncio.timeout(10):
                while kept._over:
                    await asyncio.sleep(0.05)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
