"""Request and reply: what handlers may say, what the sender hears, and that it hears it once. On a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bus.clients import Clients, replies_to, until
from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.errors import HandlerError, ReplyError, RequestTimeout
from petalbus.daemon.bus.handlers import Context, Progress, Reply
from petalbus.schemas.record import Record
from petalbus.schemas.vocabulary import Priority, ReplyKind, Status


def with_handlers(bus: Bus) -> Bus:
    """An application that answers in every way there is."""

    @bus.on("nothing")
    async def nothing(_record: Record) -> None:
        return None

    @bus.on("payload")
    async def payload(record: Record) -> dict[str, Any]:
        return {"seen": record.data}

    @bus.on("reply")
    async def reply(_record: Record) -> Reply:
        return Reply([1, 2, 3], type="numbers")

    @bus.on("bytes")
    async def raw(_record: Record) -> bytes:
        return b"\x00\xff"

    @bus.on("progress")
    async def progress(_record: Record) -> AsyncIterator[Any]:
        yield Reply({"step": 0}, ReplyKind.ACCEPTED)
        for step in range(1, 4):
            yield Progress({"step": step})
        yield {"done": True}
        raise AssertionError("nothing runs after the result")

    @bus.on("only_progress")
    async def only_progress(_record: Record) -> AsyncIterator[Any]:
        yield Progress({"step": 1})

    @bus.on("context")
    async def context(_record: Record, told: Context) -> dict[str, Any]:
        assert await told.accepted({"soon": True})
        assert await told.progress({"half": 1})
        return {"attempt": told.attempt}

    @bus.on("refused")
    async def refused(_record: Record) -> None:
        raise HandlerError("battery too low", error_code="LOW_BATTERY", data={"level": 7})

    @bus.on("error_reply")
    async def error_reply(_record: Record) -> Reply:
        return Reply({"message": "no fix"}, ReplyKind.ERROR)

    return bus


async def test_what_a_handler_returns_is_the_reply(clients: Clients) -> None:
    """None answers with an empty object, a payload with ``<type>_response``, a Reply with what it says, bytes
    with bytes.
    """
    await with_handlers(clients.make("app")).start()
    gcs = await clients.open("gcs")
    reply = await gcs.request(
        "app", "payload", {"n": 5}, id="q1", traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    )
    assert (reply.data, reply.type, reply.kind) == ({"seen": {"n": 5}}, "payload_response", ReplyKind.RESULT)
    assert (reply.source, reply.recipient, reply.reply_to) == ("app", "gcs", "q1")
    assert reply.traceparent == "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    assert (await gcs.request("app", "nothing", {})).data == {}
    numbers = await gcs.request("app", "reply", {})
    assert (numbers.data, numbers.type) == ([1, 2, 3], "numbers")
    assert (await gcs.request("app", "bytes", {})).data == b"\x00\xff"


async def test_nobody_is_answered_who_did_not_ask(clients: Clients) -> None:
    """A handler that returns None to a plain send leaves no reply behind; one that returns something does."""
    app, gcs = with_handlers(clients.make("app")), await clients.open("gcs")
    await app.start()
    await gcs.send("app", "nothing", {}, id="s1")
    await gcs.send("app", "payload", {}, id="s2")
    await until(lambda: app.statistics()["consumer"]["settled"].get("c") == 2, "both are handled")
    await until(lambda: replies_to(gcs, "s2"), "the reply is there")
    assert await replies_to(gcs, "s1") == []


async def test_accepted_progress_and_result_arrive_in_order_and_only_the_result_ends(clients: Clients) -> None:
    """S-087: the notes that come before the result, from a generator and from the context, in their order."""
    await with_handlers(clients.make("app")).start()
    gcs = await clients.open("gcs")
    heard: list[tuple[str, Any]] = []

    def note(record: Record) -> None:
        assert record.kind is not None
        heard.append((record.kind.value, record.data))

    assert (await gcs.request("app", "progress", {}, on_progress=note)).data == {"done": True}
    assert heard == [("accepted", {"step": 0}), *(("progress", {"step": step}) for step in (1, 2, 3))]
    heard.clear()
    assert (await gcs.request("app", "context", {}, on_progress=note)).data == {"attempt": 1}
    assert heard == [("accepted", {"soon": True}), ("progress", {"half": 1})]
    assert (await gcs.request("app", "only_progress", {})).data == {}
    kinds = [record.kind for record in await replies_to(gcs, (await _last_id(gcs)))]
    assert kinds == [ReplyKind.PROGRESS, ReplyKind.RESULT]


async def _last_id(gcs: Bus) -> str:
    rows = await gcs.call("XREVRANGE", gcs.keys.replies("gcs"), "+", "-", "COUNT", 1)
    record = Record.from_fields(rows[0][1])
    assert record.reply_to is not None
    return record.reply_to


async def test_an_error_of_the_handler_reaches_the_sender_as_such(clients: Clients) -> None:
    """S-089: HandlerError and an error Reply raise ReplyError with code, message and data; the status is failed."""
    await with_handlers(clients.make("app")).start()
    gcs = await clients.open("gcs")
    with pytest.raises(ReplyError, match="battery too low") as refused:
        await gcs.request("app", "refused", {}, id="r1")
    assert refused.value.error_code == "LOW_BATTERY"
    assert refused.value.detail["level"] == 7
    assert refused.value.record.reply_to == "r1"
    assert await gcs.status("r1") is Status.FAILED
    with pytest.raises(ReplyError, match="no fix"):
        await gcs.request("app", "error_reply", {}, id="r2")
    assert await gcs.status("r2") is Status.FAILED
    assert await gcs.dead.list("app") == [], "an answer is no dead letter"


async def test_a_type_without_handler_is_a_dead_letter_and_an_error_reply(clients: Clients) -> None:
    """S-088: nobody handles the type: the sender hears it at once, the record is kept with its reason."""
    app, gcs = with_handlers(clients.make("app")), await clients.open("gcs")
    await app.start()
    with pytest.raises(ReplyError, match="somersault") as refused:
        await gcs.request("app", "somersault", {"n": 1}, id="u1")
    assert refused.value.error_code == "NO_HANDLER"
    (letter,) = await gcs.dead.list("app")
    assert (letter.reason, letter.record.id, letter.record.data) == ("no handler", "u1", {"n": 1})
    app.on("*")(_echo)
    assert (await gcs.request("app", "somersault", {"n": 2})).data == {"n": 2}


async def _echo(record: Record) -> Any:
    return record.data


async def test_a_payload_that_breaks_its_type_is_refused_before_the_handler(clients: Clients) -> None:
    """S-153: a foreign program's malformed command is answered with the field, and never handled."""
    ran: list[Record] = []
    app, gcs = clients.make("app"), await clients.open("gcs")

    @app.on("command")
    async def command(record: Record) -> None:
        ran.append(record)

    await app.start()
    fields = ("id", "bad", "type", "command", "source", "gcs", "recipient", "app", "data", '{"altitude": 10}')
    await gcs.call("XADD", app.keys.inbox("app", 2), "*", *fields)
    await until(lambda: replies_to(gcs, "bad"), "it is answered")
    (reply,) = await replies_to(gcs, "bad")
    assert reply.kind is ReplyKind.ERROR
    assert "command" in reply.data["message"]
    assert reply.data["error_code"] == "INVALID_PAYLOAD"
    assert not ran


@pytest.mark.parametrize("level", list(Priority))
async def test_requests_at_every_priority_many_at_once(clients: Clients, level: Priority) -> None:
    """A hundred requests at once: each gets its own reply."""
    await with_handlers(clients.make("app")).start()
    gcs = await clients.open("gcs")
    replies = await asyncio.gather(*(gcs.request("app", "payload", {"n": n}, priority=level) for n in range(100)))
    assert [reply.data["seen"]["n"] for reply in replies] == list(range(100))
    assert gcs.statistics()["requests"] == 0


async def test_asking_again_with_the_same_id_gets_the_first_reply(clients: Clients) -> None:
    """I2: a second request with the id, from the same or a restarted program, runs nothing and hears the same reply."""
    runs = 0
    app = clients.make("app")

    @app.on("count")
    async def count(_record: Record) -> dict[str, int]:
        nonlocal runs
        runs += 1
        return {"run": runs}

    await app.start()
    gcs = await clients.open("gcs")
    first = await gcs.request("app", "count", {}, id="once")
    again = await gcs.request("app", "count", {}, id="once")
    await gcs.close()
    restarted = await clients.open("gcs")
    later = await restarted.request("app", "count", {}, id="once")
    assert [reply.stream_id for reply in (again, later)] == [first.stream_id] * 2
    assert runs == 1
    assert len(await replies_to(restarted, "once")) == 1


async def test_a_failed_request_is_repeated_with_its_error(clients: Clients) -> None:
    """I2: the second asker of a message that failed hears the same error, at once."""
    await with_handlers(clients.make("app")).start()
    gcs = await clients.open("gcs")
    errors = []
    for _ in range(2):
        with pytest.raises(ReplyError) as refused:
            await gcs.request("app", "refused", {}, id="r1")
        errors.append(refused.value.record.stream_id)
    assert errors[0] == errors[1]


async def test_a_requester_that_restarts_hears_the_reply_it_missed(clients: Clients) -> None:
    """The request survives the sender's end: the same id, asked by its successor, waits for the running work."""
    go, started = asyncio.Event(), asyncio.Event()
    app = clients.make("app")

    @app.on("slow")
    async def slow(_record: Record) -> dict[str, bool]:
        started.set()
        await go.wait()
        return {"ok": True}

    await app.start()
    gcs = await clients.open("gcs")
    asking = asyncio.create_task(gcs.request("app", "slow", {}, id="r1", timeout=30), name="asking")
    await asyncio.wait_for(started.wait(), 10)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await gcs.close()
    successor = await clients.open("gcs")
    asking = asyncio.create_task(successor.request("app", "slow", {}, id="r1", timeout=30), name="asking-again")
    await until(lambda: successor.statistics()["requests"] == 1, "the successor asks")
    go.set()
    assert (await asking).data == {"ok": True}
    assert len(await replies_to(successor, "r1")) == 1


@pytest.mark.parametrize("known", [False, True], ids=["never-there", "offline"])
async def test_a_timeout_says_what_is_known(clients: Clients, known: bool) -> None:
    """No reply in time: the error has the message's id and status, and whether the recipient was ever there."""
    if known:
        app = with_handlers(clients.make("app"))
        await app.start()
        await app.close()
    gcs = await clients.open("gcs")
    with pytest.raises(RequestTimeout) as late:
        await gcs.request("app", "payload", {}, id="t1", timeout=0.1)
    assert late.value.message_id == "t1"
    assert ("offline" if known else "no application of that name") in str(late.value)
    assert isinstance(late.value, TimeoutError)


async def test_one_id_is_waited_for_once_in_a_process(clients: Clients) -> None:
    """Two requests with one id at the same time in one process: a clear error, and the first still gets its reply."""
    go = asyncio.Event()
    app, gcs = clients.make("app"), await clients.open("gcs")

    @app.on("slow")
    async def slow(_record: Record) -> None:
        await go.wait()

    await app.start()
    first = asyncio.create_task(gcs.request("app", "slow", {}, id="x"), name="first")
    await until(lambda: gcs.statistics()["requests"] == 1, "the first waits")
    with pytest.raises(ValueError, match="waiting for its reply already"):
        await gcs.request("app", "slow", {}, id="x")
    go.set()
    assert (await first).reply_to == "x"


@pytest.mark.parametrize("said", [Progress({"n": 1}), Reply({}, ReplyKind.ACCEPTED)], ids=["progress", "accepted"])
async def test_a_note_is_no_result(clients: Clients, said: Reply) -> None:
    """A plain handler that returns a note instead of a result is at fault: the sender gets a final reply all
    the same.
    """
    app, gcs = clients.make("app", max_attempts=1), await clients.open("gcs")

    @app.on("note")
    async def note(_record: Record) -> Reply:
        return said

    await app.start()
    try:
        reply = await gcs.request("app", "note", {}, id="n1", timeout=2.0)
    except ReplyError as error:
        reply = error.record
    assert reply.kind is not None
    assert reply.kind.final
