"""`petalbus apps`: who is there."""

from __future__ import annotations

import time

from petalbus.daemon.cli.common import Data, Json, client, duration, run, say_json, table


def apps(data: Data = None, json: Json = False) -> None:
    """List the applications of the bus, online and offline, with the number of their live processes."""

    async def work() -> None:
        async with client(data) as bus:
            found = await bus.applications()
        if json:
            for one in found:
                say_json(one._asdict())
            return
        now = time.time()
        rows = [
            (
                one.app,
                one.status,
                one.consumers,
                "never" if one.last_seen is None else f"{duration(max(0.0, now - one.last_seen))} ago",
            )
            for one in found
        ]
        table(("APP", "STATUS", ">LIVE", "LAST SEEN"), rows, empty="no application has been on this bus yet")

    run(work())
