"""Petals for the tests."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from fastapi import Depends, HTTPException, Request, Response, UploadFile, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, create_model
from pydantic_core import core_schema

from petalbus.petals.base import Petal
from petalbus.petals.decorators import http_action, mqtt_action, websocket_action


class Item(BaseModel):
    name: str
    size: float = 1.0


@dataclass
class Point:
    x: float
    y: float


def who(request: Request) -> str:
    return request.headers.get("x-who", "nobody")


class Alpha(Petal):
    """A petal with all kinds of routes."""

    name = "alpha"
    version = "1.2.3"

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.thread_gate = threading.Event()
        self.waiting = 0
        self.sockets: list[WebSocket] = []
        self.disconnects: list[int] = []
        self.sent = 0
        self.received = 0

    @http_action("GET", "/plain", summary="A plain one", tags=["words"], description="It says hello.")
    def plain(self, count: int = 1) -> dict[str, Any]:
        return {"hello": count, "thread": threading.current_thread() is not threading.main_thread()}

    @http_action("GET", "/on-loop")
    async def on_loop(self) -> dict[str, Any]:
        return {"running": asyncio.get_running_loop() is not None}

    @http_action("POST", "/items", status_code=201)
    async def create(self, item: Item, response: Response) -> Item:
        response.headers["x-made"] = item.name
        return item

    @http_action("PUT", "/items/{item_id}", response_model=Item)
    async def put(self, item_id: int, item: Item) -> Any:
        return {"name": f"{item_id}:{item.name}", "size": np.float64(2.5), "secret": "not in the model"}

    @http_action("PATCH", "/items/{item_id}")
    def patch(self, item_id: int, body: dict[str, Any]) -> Any:
        return {"id": item_id, **body}

    @http_action("DELETE", "/items/{item_id}")
    async def delete(self, item_id: int) -> None:
        raise HTTPException(404, f"no item {item_id}", headers={"x-hint": "none"})

    @http_action("GET", "/items/{item_id}")
    async def a_parameter(self, item_id: str) -> str:
        return f"item {item_id}"

    @http_action("GET", "/items/latest")
    async def z_latest(self) -> str:
        return "the latest"

    @http_action("GET", "/who")
    async def who(self, name: Annotated[str, Depends(who)]) -> str:
        return name

    @http_action("POST", "/command")
    @mqtt_action("do")
    async def command(self, topic: str, message: dict[str, Any]) -> dict[str, Any]:
        return {"topic": topic, "message": message}

    @http_action("GET", "/values")
    async def values(self) -> dict[Any, Any]:
        return {
            "nan": math.nan,
            "deep": [{"inf": [math.inf, -math.inf]}],
            "scalar": np.float32(1.5),
            "integer": np.int64(7),
            "array": np.array([[1.0, math.nan], [3.0, 4.0]]),
            "time": datetime(2026, 1, 2, tzinfo=UTC),
            "path": Path("/data/x"),
            "model": Item(name="a", size=math.nan),
            "point": Point(1.0, math.inf),
            "set": {1},
            7: "a number as key",
        }

    @http_action("GET", "/bytes")
    async def raw(self) -> dict[str, Any]:
        return {"frames": [{"raw": b"\xff\x00"}]}

    @http_action("GET", "/fails")
    async def fails(self) -> None:
        raise ValueError("the secret is 1234")

    @http_action("GET", "/slow", timeout=0.1)
    async def slow(self) -> None:
        await asyncio.Event().wait()

    @http_action("GET", "/hangs", timeout=0.1)
    def hangs(self) -> str:
        self.waiting += 1
        self.thread_gate.wait(10)
        self.waiting -= 1
        return "late"

    @http_action("GET", "/waits")
    async def waits(self) -> str:
        self.waiting += 1
        try:
            await self.gate.wait()
        finally:
            self.waiting -= 1
        return "done"

    @http_action("POST", "/upload")
    async def upload(self, file: UploadFile) -> dict[str, Any]:
        size = 0
        while piece := await file.read(1 << 16):
            size += len(piece)
        return {"name": file.filename, "size": size}

    @http_action("POST", "/stream", max_body=64 << 20)
    async def stream(self, request: Request) -> int:
        self.received = 0
        async for piece in request.stream():
            self.received += len(piece)
            if self.received > 100_000 and request.headers.get("x-wait"):
                await self.gate.wait()
        return self.received

    @http_action("GET", "/endless")
    async def endless(self) -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            while True:
                self.sent += 1 << 16
                yield b"x" * (1 << 16)

        return StreamingResponse(pieces(), headers={"x-kind": "endless"})

    @http_action("GET", "/ticks")
    async def ticks(self) -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            for number in range(3):
                yield b"tick %d\n" % number
                await self.gate.wait()
                self.gate.clear()

        return StreamingResponse(pieces(), media_type="text/plain")

    @http_action("GET", "/client")
    async def client(self, request: Request) -> dict[str, Any]:
        assert request.client is not None
        return {
            "client": request.client.host,
            "url": str(request.url),
            "here": str(request.url_for("client")),
            "forwarded": request.headers.get("x-forwarded-for"),
            "id": request.headers.get("x-request-id"),
            "custom": request.headers.getlist("x-custom"),
        }

    @websocket_action("/ws", name="An echo of words")
    async def ws(self, websocket: WebSocket) -> None:
        """Sends back what it gets."""
        wanted = websocket.scope.get("subprotocols", [])
        await websocket.accept(subprotocol=wanted[0] if wanted else None)
        self.sockets.append(websocket)
        try:
            while True:
                message = await websocket.receive()
                if message["type"] == "websocket.disconnect":
                    self.disconnects.append(message["code"])
                    return
                if message.get("text") == "boom":
                    raise ValueError("boom")
                if message.get("text") == "leave":
                    await websocket.close(4001, "as you wish")
                    return
                if message.get("bytes") is not None:
                    await websocket.send_bytes(message["bytes"])
                else:
                    await websocket.send_text(message["text"])
        finally:
            self.sockets.remove(websocket)

    @websocket_action("/flood")
    async def flood(self, websocket: WebSocket) -> None:
        await websocket.accept()
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                await websocket.send_bytes(b"x" * (1 << 16))
                self.sent += 1 << 16
        self.sent = -1

    @websocket_action("/closed")
    async def closed(self, websocket: WebSocket) -> None:
        raise RuntimeError("before it was accepted")

    @websocket_action("/stubborn")
    async def stubborn(self, websocket: WebSocket) -> None:
        await websocket.accept()
        while True:
            await asyncio.sleep(3600)


class Beta(Petal):
    """Another one, with a model of the same name."""

    name = "beta"
    version = "0.1"

    @http_action("POST", "/items", response_model=create_model("Item", weight=(int, ...)))
    async def items(self, item: dict[str, int]) -> Any:
        return item

    @http_action("GET", "/time")
    async def time(self) -> float:
        return time.time()

    @websocket_action("/ws")
    async def ws(self, websocket: WebSocket) -> None:
        await websocket.accept()
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                await websocket.send_text(await websocket.receive_text())


class Shapeless:
    """Something that is checked, and has no JSON schema."""

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> Any:
        return core_schema.no_info_plain_validator_function(lambda value: value)

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: Any, _handler: Any) -> Any:
        raise TypeError("this has no shape")


class Bad(BaseModel):
    value: Shapeless


class Odd(Petal):
    """Routes that something is wrong with."""

    name = "odd"

    @http_action("POST", "/undescribed")
    async def undescribed(self, body: Bad) -> str:
        return "taken"

    @http_action("GET", "/bad")
    async def bad(self, lock: asyncio.Lock) -> str:
        return "never"

    @http_action("GET", "/loose", unheard_of=True)
    async def loose(self) -> asyncio.Lock | dict[str, int]:
        return {"a": 1}


class Large(Petal):
    """A large answer."""

    name = "large"
    rows: ClassVar[list[Any]] = [{"n": n, "text": "x" * 20, "more": {"a": [n, n + 0.5]}} for n in range(100_000)]

    @http_action("GET", "/all")
    async def all(self) -> dict[str, Any]:
        return {"rows": self.rows}
