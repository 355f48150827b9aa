"""A bucket handler in a process of its own, to kill: uploader.py BUS_URL BUS_NAME ENDPOINT TOKEN_URL [FIRST_WAIT]."""

from __future__ import annotations

import asyncio
import sys

from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.options import BusOptions
from petalbus.handlers.bucket.handler import BucketHandler, BucketOptions
from petalbus.handlers.bucket.store import Store


async def main() -> None:
    """Until it is killed."""
    url, bus_name, endpoint, token_url, *more = sys.argv[1:]
    store = Store("logs", token_url=token_url, endpoint=endpoint, timeout=30.0, attempts=1)
    bus = Bus(url, app="bucket", bus=bus_name, options=BusOptions())
    options = BucketOptions(first_wait=float(more[0]) if more else 1.0)
    async with BucketHandler(bus, store, machine=lambda: "m1", options=options) as handler:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await handler.run()


if __name__ == "__main__":
    asyncio.run(main())
