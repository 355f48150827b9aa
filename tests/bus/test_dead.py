"""Dead letters: listed, shown, edited, put back, dropped. On a real server."""

from __future__ import annotations

import asyncio

import pytest

from bus.clients import Clients, pending, until
from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.errors import NoSuchDeadLetter, ReplyError
from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.record import Record
from petalbus.schemas.vocabulary import Priority, Status

from support.proxy import Proxy


async def mortician(clients: Clients) -> tuple[Bus, Bus, list[Record]]:
    """An app whose handler fails unless told ``{"ok": true}``; a sender; and what the handler saw."""
    app, gcs = clients.make("app", max_attempts=1), await clients.open("gcs")
    seen: list[Record] = []

    @app.on("work")
    async def work(record: Record) -> dict[str, bool]:
        seen.append(record)
        if not record.data.get("ok"):
            raise OSError("it does not work")
        return {"ok": True}

    await app.start()
    return app, gcs, seen


async def bury(gcs: Bus, message_id: str, **more: object) -> str:
    """Make one dead letter; its entry."""
    with pytest.raises(ReplyError):
        await gcs.request("app", "work", {"n": 1}, id=message_id, priority=Priority.HIGH, key="k")
    return (await gcs.dead.list("app"))[-1].entry


async def test_a_dead_letter_tells_everything(clients: Clients) -> None:
    """I8: reason, attempts, traceback, where it came from, and the record as it was."""
    _, gcs, _ = await mortician(clients)
    entry = await bury(gcs, "d1")
    letter = await gcs.dead.show("app", entry)
    assert (letter.app, letter.entry, letter.attempts) == ("app", entry, 1)
    assert letter.stream == gcs.keys.inbox("app", Priority.HIGH)
    assert "it does not work" in letter.reason
    assert "Traceback" in letter.detail
    record = letter.record
    assert (record.id, record.key, record.priority, record.data) == ("d1", "k", Priority.HIGH, {"n": 1})
    assert letter.summary()["id"] == "d1"
    assert await gcs.dead.apps() == ["app"]


async def test_requeue_puts_the_record_back_edited_or_not(clients: Clients) -> None:
    """S-089: the same id runs again from the inbox it came from; the dead letter is gone; the status follows."""
    _, gcs, seen = await mortician(clients)
    entry = await bury(gcs, "d1")
    await gcs.dead.requeue("app", entry)
    await until(lambda: len(seen) == 2, "it runs again")
    await until(lambda: _count(gcs, 1), "and dies again")
    (letter,) = await gcs.dead.list("app")
    await gcs.dead.requeue("app", letter.entry, data={"ok": True})
    await until(lambda: _status(gcs, "d1", Status.COMPLETED), "now it works")
    assert [record.id for record in seen] == ["d1"] * 3
    assert (seen[2].key, seen[2].priority, seen[2].source) == ("k", Priority.HIGH, "gcs")
    assert await gcs.dead.list("app") == []
    assert await gcs.dead.apps() == []
    assert await pending(gcs, "app") == 0


async def _count(gcs: Bus, number: int) -> bool:
    return len(await gcs.dead.list("app")) == number


async def _status(gcs: Bus, message_id: str, status: Status) -> bool:
    return await gcs.status(message_id) is status


async def test_edit_changes_the_letter_and_leaves_it_dead(clients: Clients) -> None:
    """The edited letter keeps reason, attempts and origin; its entry is new; requeueing it runs the edited record."""
    _, gcs, seen = await mortician(clients)
    entry = await bury(gcs, "d1")
    new = await gcs.dead.edit("app", entry, data={"ok": True})
    letter = await gcs.dead.show("app", new)
    assert letter.record.data == {"ok": True}
    assert "it does not work" in letter.reason
    assert letter.attempts == 1
    assert letter.stream == gcs.keys.inbox("app", Priority.HIGH)
    with pytest.raises(NoSuchDeadLetter):
        await gcs.dead.show("app", entry)
    await gcs.dead.requeue("app", new)
    await until(lambda: _status(gcs, "d1", Status.COMPLETED), "it works")
    assert len(seen) == 2


async def test_drop_forgets_one(clients: Clients) -> None:
    """Only the one named; dropping it twice, or something that is no id, says so."""
    _, gcs, _ = await mortician(clients)
    first, second = await bury(gcs, "d1"), await bury(gcs, "d2")
    await gcs.dead.drop("app", first)
    assert [letter.entry for letter in await gcs.dead.list("app")] == [second]
    for entry in (first, "nonsense", "", "1-x"):
        with pytest.raises(NoSuchDeadLetter):
            await gcs.dead.drop("app", entry)
        with pytest.raises(NoSuchDeadLetter):
            await gcs.dead.show("app", entry)
        with pytest.raises(NoSuchDeadLetter):
            await gcs.dead.requeue("app", entry)


async def test_two_people_requeue_one_letter_and_it_runs_once(clients: Clients) -> None:
    """Two requeues at once: one wins, the other hears that it was settled meanwhile."""
    _, gcs, seen = await mortician(clients)
    other = await clients.open("other")
    entry = await bury(gcs, "d1")
    results = await asyncio.gather(
        *(bus.dead.requeue("app", entry, data={"ok": True}) for bus in (gcs, other)), return_exceptions=True
    )
    assert sum(isinstance(result, NoSuchDeadLetter) for result in results) == 1
    await until(lambda: _status(gcs, "d1", Status.COMPLETED), "it works")
    assert len(seen) == 2


async def test_what_was_never_a_record_can_be_mended(clients: Clients) -> None:
    """A foreign program's broken entry: requeue says what is wrong, an edit that makes it valid lets it run."""
    _, gcs, seen = await mortician(clients)
    fields = ("id", "b1", "type", "work", "source", "fc", "data", "{broken")
    await gcs.call("XADD", gcs.keys.inbox("app", 2), "*", *fields)
    await until(lambda: _count(gcs, 1), "it is buried")
    (letter,) = await gcs.dead.list("app")
    await gcs.dead.requeue("app", letter.entry, data={"ok": True})
    await until(lambda: seen, "it runs")
    assert (seen[0].id, seen[0].source) == ("b1", "fc")
    await gcs.call("XADD", gcs.keys.inbox("app", 2), "*", "id", "b2", "source", "fc", "data", "{}")
    await until(lambda: _count(gcs, 1), "it is buried")
    (letter,) = await gcs.dead.list("app")
    with pytest.raises(RecordInvalid, match="type"):
        await gcs.dead.requeue("app", letter.entry)
    assert len(await gcs.dead.list("app")) == 1, "it stays where it is"


async def test_many_letters_are_listed_in_pages(clients: Clients) -> None:
    """Oldest first, at most ``count``, going on after an entry."""
    _, gcs, _ = await mortician(clients)
    await asyncio.gather(*(gcs.send("app", "work", {"n": n}, id=f"d{n}") for n in range(25)))
    await until(lambda: _count(gcs, 25), "all are buried")
    pages, after = [], None
    while page := await gcs.dead.list("app", count=10, after=after):
        pages.append([letter.record.id for letter in page])
        after = page[-1].entry
    assert [len(page) for page in pages] == [10, 10, 5]
    assert [one for page in pages for one in page] == [f"d{n}" for n in range(25)]


async def test_a_lost_answer_to_a_requeue_or_an_edit_is_no_error(clients: Clients, proxy: Proxy) -> None:
    """It worked, and its answer got lost: asked again, the call tells what it did; the record is there once."""
    _, gcs, seen = await mortician(clients)
    entry = await bury(gcs, "m-1")
    ground = await clients.open("ground", url=proxy.url)

    lost = proxy.lose_reply_to(b"once:")
    edited = await ground.dead.edit("app", entry, data={"ok": True})
    assert lost.is_set()
    assert [letter.entry for letter in await gcs.dead.list("app")] == [edited]

    lost = proxy.lose_reply_to(b"once:")
    await ground.dead.requeue("app", edited)
    assert lost.is_set()
    await until(lambda: len(seen) == 2, "it is handled")
    assert await gcs.dead.list("app") == []
    assert await gcs.status("m-1") is Status.COMPLETED
    assert len(seen) == 2
