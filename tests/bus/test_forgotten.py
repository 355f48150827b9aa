"""I2: work that must not run twice, found again when the id window has forgotten it. On a real server."""

from __future__ import annotations

import pytest

from bus.clients import Clients, pending, replies_to, until
from petalbus.daemon.bus.keys import GROUP
from petalbus.schemas.record import Record
from petalbus.schemas.vocabulary import Priority

from support.servers import RealServer


@pytest.mark.parametrize(("redelivery", "runs"), [("report", 0), ("rerun", 1)])
async def test_forgotten_work_is_reported_not_run(
    clients: Clients, server: RealServer, redelivery: str, runs: int
) -> None:
    """Whether it began before its consumer died nobody can tell any more: `report` work is answered, never run."""
    gcs = await clients.open("gcs")
    stream = gcs.keys.inbox("app", Priority.HIGH)
    await gcs.send("app", "arm", {}, id="old", priority=Priority.HIGH)
    server.command("XGROUP", "CREATE", stream, GROUP, "0")
    server.command("XREADGROUP", "GROUP", GROUP, "long-dead", "COUNT", "1", "STREAMS", stream, ">")
    server.command("HDEL", gcs.keys.ids, "old")
    seen: list[str] = []
    app = clients.make("app")

    @app.on("arm", redelivery=redelivery)  # type: ignore[arg-type]  # the parameter is one of the two words
    async def arm(record: Record) -> dict[str, bool]:
        seen.append(record.id)
        return {"armed": True}

    await app.start()

    async def settled() -> bool:
        return await pending(gcs, "app") == 0

    await until(settled, "the orphan's record is taken over and settled")
    assert seen == ["old"] * runs
    (reply,) = await replies_to(gcs, "old")
    assert reply.data.get("error_code") == (None if runs else "OUTCOME_UNKNOWN")
    letters = await gcs.dead.list("app")
    assert [letter.reason for letter in letters] == ["outcome unknown"] * (1 - runs)
