"""A process of a petal's own, as far as HTTP goes: `own_process.py SOCKET`. Prints its process id when it serves."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from fastapi import WebSocket

from petalbus.daemon.http.options import HttpOptions
from petalbus.daemon.http.petal_app import petal_app
from petalbus.daemon.http.server import Server, unix_listener
from petalbus.petals.base import Petal
from petalbus.petals.decorators import http_action, websocket_action


class Own(Petal):
    name = "own"

    @http_action("GET", "/pid")
    async def pid(self) -> int:
        return os.getpid()

    @http_action("GET", "/never")
    async def never(self) -> None:
        await asyncio.Event().wait()

    @websocket_action("/ws")
    async def ws(self, websocket: WebSocket) -> None:
        await websocket.accept()
        while True:
            await websocket.send_text(await websocket.receive_text())


async def main() -> None:
    app = petal_app(Own())
    server = Server(app, unix_listener(Path(sys.argv[1])), options=HttpOptions())
    await server.start()
    print(os.getpid(), flush=True)  # noqa: T201  # the test waits for it
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
