"""What a handler can say beyond a value: a reply with an id and fields, a refusal that is kept, nothing for now."""

from __future__ import annotations

import asyncio
import time

import pytest

from bus.clients import Clients, pending, replies_to, until
from petalbus.daemon.bus.errors import HandlerError, ReplyError
from petalbus.daemon.bus.handlers import HANDED_OVER, HandedOver, Reply
from petalbus.schemas.record import Record
from petalbus.schemas.vocabulary import Status


async def test_a_reply_may_have_an_id_and_fields_of_its_own(clients: Clients) -> None:
    """S-138: as they are given; an id that is none breaks the reply, and is told as that."""
    app, gcs = clients.make("app"), await clients.open("gcs")

    @app.on("one")
    async def one(record: Record) -> Reply:
        return Reply({"n": 1}, id=f"response_{record.id}", fields={b"priority": b"3", b"note": b"mine"})

    @app.on("two", max_attempts=1)
    async def two(record: Record) -> Reply:
        return Reply({}, id="not an id")

    await app.start()
    reply = await gcs.request("app", "one", {}, id="m1")
    assert (reply.id, int(reply.priority), reply.extra["note"]) == ("response_m1", 3, b"mine")
    with pytest.raises(ReplyError, match="not an id"):
        await gcs.request("app", "two", {}, id="m2")
    (refusal,) = await replies_to(gcs, "m2")
    assert refusal.id == "error_m2"


async def test_a_refusal_may_be_kept_as_a_dead_letter(clients: Clients) -> None:
    """I8: answered at once, not tried again, and somebody can look at it with the traceback of its cause."""
    app, gcs = clients.make("app"), await clients.open("gcs")

    @app.on("one")
    async def one(record: Record) -> dict[str, float]:
        try:
            return {"n": 1 / record.data["by"]}
        except ZeroDivisionError as error:
            raise HandlerError("it cannot be divided", dead=True) from error

    await app.start()
    with pytest.raises(ReplyError, match="cannot be divided"):
        await gcs.request("app", "one", {"by": 0}, id="m1")
    (letter,) = await app.dead.list("app")
    assert (letter.record.id, letter.reason, letter.attempts) == ("m1", "it cannot be divided", 1)
    assert "ZeroDivisionError: division by zero" in letter.detail
    assert await gcs.status("m1") is Status.FAILED
    assert await pending(app, "app") == 0


async def test_who_asks_again_gets_the_refusal_and_not_what_else_was_written(clients: Clients) -> None:
    """I2: the reply is remembered, not the dead letter; their ids look alike, and here they differ for certain."""
    app, gcs = clients.make("app"), await clients.open("gcs")

    @app.on("one")
    async def one(record: Record) -> None:
        raise HandlerError("no", dead=True)

    await app.start()
    await app.call("XADD", app.keys.dead("app"), f"{(int(time.time()) + 3600) * 1000}-0", "an", "older one")
    for _ in range(2):
        with pytest.raises(ReplyError, match="no"):
            await gcs.request("app", "one", {}, id="m1")


async def test_what_was_handed_over_is_acknowledged_and_answered_later(clients: Clients) -> None:
    """S-120: no reply yet, although the sender waits; delivered until somebody answers, and cannot be cancelled."""
    app, gcs = clients.make("app"), await clients.open("gcs")

    @app.on("one")
    async def one(record: Record) -> HandedOver:
        return HANDED_OVER

    await app.start()
    asking = asyncio.create_task(gcs.request("app", "one", {}, id="m1", timeout=0.5))

    async def delivered() -> bool:
        return await gcs.status("m1") is Status.DELIVERED

    await until(delivered, "it is handed over")
    assert await pending(app, "app") == 0
    assert not await gcs.cancel("m1")
    assert await replies_to(gcs, "m1") == []
    with pytest.raises(TimeoutError, match="delivered"):
        await asking


async def test_replies_that_nobody_waits_for_can_be_heard(clients: Clients) -> None:
    """S-088: each final one, while the client consumes; what a request waits for is its own."""
    app, gcs = clients.make("app"), clients.make("gcs")
    heard: list[str | None] = []

    @app.on("one")
    async def one(record: Record) -> dict[str, int]:
        return {"n": 1}

    @gcs.on("anything")
    async def anything(record: Record) -> None:
        return None

    gcs.on_other_reply(lambda record: heard.append(record.reply_to))
    await app.start()
    await gcs.start()
    await gcs.send("app", "one", {}, id="m1")
    await until(lambda: heard, "the reply is heard")
    await gcs.request("app", "one", {}, id="m2")
    gcs.on_other_reply(None)
    await gcs.send("app", "one", {}, id="m3")
    await gcs.request("app", "one", {}, id="m4")
    assert heard == ["m1"]
