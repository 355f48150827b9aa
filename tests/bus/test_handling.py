"""Handling: order, concurrency, retries, and handlers that do their worst. On a real server."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from typing import Any

import pytest

from bus.clients import Clients, pending, replies_to, until
from petalbus.daemon.bus.errors import HandlerError, ReplyError
from petalbus.daemon.bus.handlers import Context, Reply
from petalbus.schemas.record import Record
from petalbus.schemas.vocabulary import Priority, ReplyKind, Status


async def test_records_of_a_source_are_handled_in_order(clients: Clients) -> None:
    """I3: per source and priority one after the other, in the order of sending, though four workers are free."""
    app = clients.make("app")
    seen: dict[str, list[int]] = {"s1": [], "s2": []}
    busy = Counter[str]()

    @app.on("n", concurrency=None)
    async def handle(record: Record) -> None:
        busy[record.source] += 1
        assert busy[record.source] == 1, "two records of one source at once"
        await asyncio.sleep(0)
        seen[record.source].append(record.data["n"])
        busy[record.source] -= 1

    await app.start()
    sources = [await clients.open(name) for name in seen]
    await asyncio.gather(*(bus.send("app", "n", {"n": n}) for n in range(500) for bus in sources))
    await until(lambda: sum(map(len, seen.values())) == 1000, "all are handled")
    assert seen == {"s1": list(range(500)), "s2": list(range(500))}


async def test_an_ordering_key_takes_the_place_of_the_source(clients: Clients) -> None:
    """I3: with a key, order holds per key and over sources; records of different keys run beside each other."""
    app = clients.make("app")
    gate, running = asyncio.Event(), set[str]()
    seen: dict[str, list[int]] = {"motor": [], "camera": []}

    @app.on("n", concurrency=None)
    async def handle(record: Record) -> None:
        assert record.key is not None
        assert record.key not in running
        running.add(record.key)
        await gate.wait()
        seen[record.key].append(record.data["n"])
        running.discard(record.key)

    await app.start()
    one, two = await clients.open("s1"), await clients.open("s2")
    for number in range(50):
        bus = (one, two)[number % 2]
        for key in seen:
            await bus.send("app", "n", {"n": number}, key=key)
    await until(lambda: len(running) == 2, "both keys run at once")
    gate.set()
    await until(lambda: sum(map(len, seen.values())) == 100, "all are handled")
    assert seen == {"motor": list(range(50)), "camera": list(range(50))}


@pytest.mark.parametrize(("limit", "expected"), [(1, 1), (3, 3), (None, 4)])
async def test_a_handler_runs_at_most_as_often_at_once_as_it_declares(
    clients: Clients, limit: int | None, expected: int
) -> None:
    """The declared concurrency holds, and is reached; without a limit the client's workers are it."""
    app, gcs = clients.make("app"), await clients.open("gcs")
    gate, running = asyncio.Event(), 0

    @app.on("n", concurrency=limit)
    async def handle(_record: Record) -> None:
        nonlocal running
        running += 1
        assert running <= expected
        await gate.wait()
        running -= 1

    await app.start()
    for number in range(20):
        await gcs.send("app", "n", {}, key=f"k{number}")
    await until(lambda: running == expected, f"{expected} run at once")
    await until(lambda: pending(gcs, "app"), "they are delivered")
    assert running == expected
    gate.set()
    await until(lambda: app.statistics()["consumer"]["settled"].get("c") == 20, "all are handled")


async def test_the_limit_of_the_handler_for_everything_holds_over_all_types(clients: Clients) -> None:
    """``*`` with concurrency 1 is one handler: records of two types do not run in it at once."""
    app, gcs = clients.make("app"), await clients.open("gcs")
    running, most = 0, 0

    @app.on("*", concurrency=1)
    async def handle(_record: Record) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(5):
            await asyncio.sleep(0)
        running -= 1

    await app.start()
    for number in range(30):
        await gcs.send("app", f"type{number % 5}", {}, key=f"k{number}")
    await until(lambda: app.statistics()["consumer"]["settled"].get("c") == 30, "all are handled")
    assert most == 1


async def test_two_records_with_the_same_stream_id_on_two_levels_run_side_by_side(clients: Clients) -> None:
    """Ids of two priority streams are often equal; each record is settled by itself and no worker is lost."""
    app, gcs = clients.make("app"), await clients.open("gcs")

    @app.on("n", concurrency=None)
    async def handle(_record: Record) -> None:
        await asyncio.sleep(0)

    await app.start()
    for _ in range(40):
        await asyncio.gather(*(gcs.request("app", "n", {}, priority=level) for level in Priority))
    assert app.statistics()["consumer"]["held"] == 0


class Awful(Exception):
    """An exception that cannot even be printed."""

    def __str__(self) -> str:
        raise RuntimeError("no text for you")


def awful(kind: str) -> Any:
    """What the handlers below raise or return."""
    match kind:
        case "surrogates":
            raise ValueError("file \udc80\udcff")
        case "huge":
            raise ValueError("x" * 3_000_000)
        case "no-json":
            return {"o": object()}
        case "nan":
            return {"lat": float("nan")}
        case "too-big":
            return {"text": "x" * 2_000_000}
        case "record":
            return Record(id="1", type="t", source="s")
        case "error-data":
            raise HandlerError("no", data={"o": object()})
        case "error-text":
            raise HandlerError("\ud800" * 10)
        case "bad-type":
            return Reply({}, type="not a type")
        case "timeout":
            raise TimeoutError
        case "cancelled":
            raise asyncio.CancelledError
        case "stop-iteration":
            raise StopAsyncIteration
        case "no-text":
            raise Awful
    raise AssertionError(kind)


AWFUL = [
    *("surrogates", "huge", "no-json", "nan", "too-big", "record", "error-data", "error-text", "bad-type", "timeout"),
    *("cancelled", "stop-iteration", "no-text"),
]


@pytest.mark.parametrize("redelivery", ["rerun", "report"])
@pytest.mark.parametrize("kind", AWFUL)
async def test_whatever_a_handler_does_the_next_record_is_handled(clients: Clients, kind: str, redelivery: Any) -> None:
    """I8, S-089: more awful records than there are workers: each is answered with an error, and the app still works."""
    app, gcs = clients.make("app", max_attempts=1), await clients.open("gcs")

    @app.on("awful", redelivery=redelivery, concurrency=None)
    async def handle(_record: Record) -> Any:
        return awful(kind)

    @app.on("good")
    async def good(_record: Record) -> dict[str, bool]:
        return {"ok": True}

    await app.start()
    answers = await asyncio.gather(
        *(gcs.request("app", "awful", {"n": n}, key=f"k{n}", timeout=5) for n in range(8)), return_exceptions=True
    )
    assert [type(answer) for answer in answers] == [ReplyError] * 8, answers[0]
    assert (await gcs.request("app", "good", {}, timeout=5)).data == {"ok": True}
    assert await pending(gcs, "app") == 0
    assert app.statistics()["consumer"]["held"] == 0


async def test_a_handler_is_tried_again_with_growing_pauses_then_buried(clients: Clients) -> None:
    """I8: `rerun` work: attempts with backoff up to the declared number, then one dead letter with attempts
    and traceback.
    """
    app, gcs = clients.make("app", retry_first=0.02, retry_most=0.05), await clients.open("gcs")
    times: list[float] = []
    attempts: list[int] = []

    @app.on("flaky", max_attempts=4)
    async def flaky(_record: Record, told: Context) -> None:
        times.append(time.monotonic())
        attempts.append(told.attempt)
        raise OSError("the port is gone")

    await app.start()
    with pytest.raises(ReplyError, match="the port is gone"):
        await gcs.request("app", "flaky", {"n": 1}, id="f1")
    assert attempts == [1, 2, 3, 4]
    pauses = [later - sooner for sooner, later in itertools.pairwise(times)]
    assert pauses[0] >= 0.019
    assert pauses[1] >= 0.039
    assert pauses[2] >= 0.049, "the longest pause holds"
    (letter,) = await gcs.dead.list("app")
    assert (letter.attempts, letter.record.id, letter.stream) == (4, "f1", gcs.keys.inbox("app", 2))
    assert "OSError: the port is gone" in letter.reason
    assert "test_handling.py" in letter.detail
    assert "Traceback" in letter.detail
    assert await gcs.status("f1") is Status.FAILED
    assert len(await replies_to(gcs, "f1")) == 1
    assert app.statistics()["consumer"]["retries"] == 3


async def test_a_retry_that_succeeds_leaves_no_trace_but_the_attempt(clients: Clients) -> None:
    """A handler that fails twice and then works: one result, no dead letter; HandlerError(retry=True) counts
    as failing.
    """
    app, gcs = clients.make("app", retry_first=0.01), await clients.open("gcs")

    @app.on("flaky")
    async def flaky(_record: Record, told: Context) -> dict[str, int]:
        if told.attempt == 1:
            raise OSError("first")
        if told.attempt == 2:
            raise HandlerError("second", retry=True)
        return {"attempt": told.attempt}

    await app.start()
    assert (await gcs.request("app", "flaky", {}, id="f1")).data == {"attempt": 3}
    assert await gcs.dead.list("app") == []
    assert [record.kind for record in await replies_to(gcs, "f1")] == [ReplyKind.RESULT]


async def test_work_that_must_not_run_twice_is_not_retried(clients: Clients) -> None:
    """`report`: one attempt, then the dead letter and the error reply, also where the handler asks for another try."""
    app, gcs = clients.make("app", retry_first=0.01), await clients.open("gcs")
    runs = Counter[str]()

    @app.on("arm", redelivery="report")
    async def arm(record: Record) -> None:
        runs[record.id] += 1
        if record.data["how"] == "raise":
            raise OSError("no link")
        raise HandlerError("not now", retry=True)

    await app.start()
    for how in ("raise", "ask"):
        with pytest.raises(ReplyError):
            await gcs.request("app", "arm", {"how": how}, id=how)
    assert runs == {"raise": 1, "ask": 1}


async def test_a_failing_record_does_not_hold_up_others(clients: Clients) -> None:
    """I8: while one record waits for its next attempt, others are handled, of the same source too."""
    app, gcs = clients.make("app", retry_first=30, retry_most=30), await clients.open("gcs")

    @app.on("work")
    async def work(record: Record) -> Any:
        if record.data.get("poison"):
            raise OSError("poison")
        return record.data

    await app.start()
    await gcs.send("app", "work", {"poison": True}, id="p")
    for number in range(20):
        assert (await gcs.request("app", "work", {"n": number})).data == {"n": number}
    assert await gcs.cancel("p")


async def test_entries_that_are_no_records_are_buried_with_their_reason(clients: Clients) -> None:
    """I8, S-153: what a foreign program wrote into the inbox: each kind of nonsense is kept as a dead letter;
    all else goes on.
    """
    app, gcs = clients.make("app"), await clients.open("gcs")

    @app.on("n")
    async def handle(_record: Record) -> None:
        return None

    await app.start()
    stream = app.keys.inbox("app", 2)
    nonsense: list[list[str | bytes]] = [
        ["data", "{}"],
        ["id", "1", "type", "n"],
        ["id", "2", "type", "n", "source", "x", "priority", "9"],
        ["id", b"\xff\xfe", "type", "n", "source", "x"],
        [b"\xff", b"\xff"],
        ["id", "3", "type", "n", "source", "x", "deadline", "soon"],
        ["stream_id", "1", "id", "4", "type", "n", "source", "x"],
        ["id", "5", "type", "n", "source", "x", "data", "x" * (1 << 20), "more", "x"],
        ["id", "6", "type", "n", "source", "x", "data", "{broken"],
        ["id", "7", "type", "n", "source", "x", "encoding", "zlib", "data", "not compressed"],
        ["id", "8", "type", "n", "source", "x", "data", "[" * 5000],
        ["id", "9", "type", "n", "source", "x", *(part for n in range(4500) for part in (f"f{n}", "1"))],
    ]
    for fields in nonsense:
        await gcs.call("XADD", stream, "*", *fields)
    assert (await gcs.request("app", "n", {})).data == {}
    await until(lambda: app.statistics()["consumer"]["held"] == 0, "nothing is held")
    await _all_dead(clients, len(nonsense) - 1)
    assert await pending(gcs, "app") == 0


async def _all_dead(clients: Clients, number: int) -> None:
    gcs = await clients.open("looking", presence=False)

    async def buried() -> bool:
        return len(await gcs.dead.list("app")) >= number

    await until(buried, f"{number} dead letters", seconds=3)
    assert all(letter.reason == "invalid" and letter.detail for letter in await gcs.dead.list("app"))


async def test_critical_overtakes_everything_that_waits(clients: Clients) -> None:
    """I4: with all workers busy with LOW records, a CRITICAL one starts at once on its own worker."""
    app, gcs = clients.make("app"), await clients.open("gcs")
    gate, low, urgent = asyncio.Event(), 0, asyncio.Event()

    @app.on("low", concurrency=None)
    async def handle_low(_record: Record) -> None:
        nonlocal low
        low += 1
        await gate.wait()

    @app.on("stop")
    async def handle_stop(_record: Record) -> None:
        urgent.set()

    await app.start()
    for number in range(300):
        await gcs.send("app", "low", {}, priority=Priority.LOW, key=f"k{number}")
    await until(lambda: low == 4, "all workers are busy")
    await gcs.send("app", "stop", {}, priority=Priority.CRITICAL)
    await asyncio.wait_for(urgent.wait(), 5)
    assert low == 4
    gate.set()
    await until(lambda: app.statistics()["consumer"]["settled"].get("c") == 301, "all are handled")


async def test_higher_levels_go_first_and_low_gets_its_turn(clients: Clients) -> None:
    """I4: a backlog on every level: CRITICAL, then HIGH before NORMAL before LOW; LOW has at least 5 % of the
    starts.
    """
    app, gcs = clients.make("app", workers=1), await clients.open("gcs")
    starts: list[Priority] = []
    gate = asyncio.Event()

    @app.on("n", concurrency=None)
    async def handle(record: Record) -> None:
        await gate.wait()  # until every level is read
        starts.append(record.priority)

    for level in (Priority.LOW, Priority.NORMAL, Priority.HIGH, Priority.CRITICAL):
        await asyncio.gather(*(gcs.send("app", "n", {}, priority=level) for _ in range(400)))
    await app.start()
    await until(lambda: all(app.statistics()["consumer"]["waiting"].values()), "every level is read")
    gate.set()
    await until(lambda: len(starts) == 1600, "all are handled")
    last_high = max(index for index, level in enumerate(starts) if level is Priority.HIGH)
    under_load = Counter(level for level in starts[: last_high + 1] if level is not Priority.CRITICAL)
    assert under_load[Priority.HIGH] == 400
    assert under_load[Priority.LOW] >= 0.05 * under_load.total(), "LOW starves"
    assert under_load[Priority.NORMAL] >= 0.05 * under_load.total(), "NORMAL starves"
    assert under_load.total() < 800, "HIGH has no precedence"  # 452 when reading never lags, 1,200 without priorities


@pytest.mark.alone
async def test_a_full_read_ahead_is_refilled_without_a_pause(clients: Clients) -> None:
    """No lost wake-up: with instant handlers a backlog of many windows is worked off without ever waiting for
    a block.
    """
    app, gcs = clients.make("app"), await clients.open("gcs")
    last, longest, count = 0.0, 0.0, 0

    @app.on("n", concurrency=None)
    async def handle(_record: Record) -> None:
        nonlocal last, longest, count
        now = time.monotonic()
        longest, last, count = max(longest, now - (last or now)), now, count + 1

    await app.start()
    for _ in range(10):
        await asyncio.gather(*(gcs.send("app", "n", {}, priority=1 + n % 3, key=f"k{n % 5}") for n in range(2000)))
    await until(lambda: count == 20_000, "all are handled", seconds=20)
    assert longest < 2.0, f"a pause of {longest:.1f} s"
