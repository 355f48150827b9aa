"""The MQTT client program that petals' computers run, played by a real HTTP server on a port of its own.

It answers /health, /subscribe, /unsubscribe and /publish, and brings messages to the addresses that were registered.
Switches make it what the real one is on bad days.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import h11
import httpx
import orjson

from petalbus.handlers.mqtt.words import matches

from support.servers import free_port

Judge = Callable[[dict[str, Any]], tuple[int, Any] | None]
"""What to answer a publication instead of success; None: success."""


class TsClient:
    """``await start()``, ``await stop()``. What it has done is in ``calls``, ``published``, ``subscriptions``."""

    def __init__(self) -> None:
        self.port = free_port()
        self.calls: list[tuple[str, Any]] = []
        self.published: list[dict[str, Any]] = []
        self.subscriptions: dict[str, str | None] = {}
        self.failing_probes = 0
        self.judge: Judge = lambda _body: None
        self.refused_filters: dict[str, tuple[int, Any]] = {}
        self.delay = 0.0
        self.dies_after: int | None = None
        """It ends in the middle of a request, when it has done so many publications, and does not answer that one."""
        self.at_once = self.most_at_once = 0
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}
        self._http: httpx.AsyncClient | None = None

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Be there."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        if self._http is None:
            self._http = httpx.AsyncClient(timeout=30, trust_env=False)

    async def stop(self) -> None:
        """Be gone, as a process that was killed: every connection ends, and all that it knew is forgotten."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        self.subscriptions.clear()
        tasks = list(self._open.values())
        for writer in list(self._open):
            writer.transport.abort()
        me = asyncio.current_task()
        for task in tasks:
            if task is not me:
                task.cancel()
        await asyncio.gather(*(task for task in tasks if task is not me), return_exceptions=True)

    async def restart(self) -> None:
        """Gone and here again, too quickly for a probe."""
        await self.stop()
        await self.start()

    async def close(self) -> None:
        """The end of the test."""
        await self.stop()
        if self._http is not None:
            await self._http.aclose()

    def count(self, path: str) -> int:
        """Requests of one kind."""
        return sum(1 for called, _ in self.calls if called == path)

    async def bring(self, topic: str, payload: Any, **more: Any) -> httpx.Response | None:
        """Bring a message to who subscribed it, once; None: nobody did, or he could not be reached."""
        where = [url for name, url in self.subscriptions.items() if matches(name, topic) and url is not None]
        if not where:
            return None
        assert self._http is not None
        try:
            return await self._http.post(where[0], json={"topic": topic, "payload": payload, **more})
        except httpx.TransportError:
            return None

    async def bring_until_taken(self, topic: str, payload: Any) -> int:
        """As a client program that loses nothing: again and again until it is answered 200. How often it took."""
        tries = 1
        while (answer := await self.bring(topic, payload)) is None or answer.status_code != 200:
            tries += 1
            await asyncio.sleep(0.03)
        return tries

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open[writer] = task
        connection = h11.Connection(h11.SERVER)
        try:
            while True:
                request = await self._request(connection, reader)
                if request is None:
                    return
                status, body = await self._answer(*request)
                told = orjson.dumps(body) if not isinstance(body, bytes) else body
                headers = [("content-length", str(len(told))), ("keep-alive", "timeout=5")]
                data = connection.send(h11.Response(status_code=status, headers=headers)) or b""
                data += connection.send(h11.Data(data=told)) or b""
                writer.write(data + (connection.send(h11.EndOfMessage()) or b""))
                await writer.drain()
                if connection.our_state is h11.MUST_CLOSE:
                    return
                connection.start_next_cycle()
        except (ConnectionError, asyncio.CancelledError):
            return
        finally:
            self._open.pop(writer, None)
            writer.transport.abort()

    async def _request(self, connection: h11.Connection, reader: asyncio.StreamReader) -> tuple[str, Any] | None:
        path, body = "", b""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(65536))
            elif isinstance(event, h11.Request):
                path = event.target.decode()
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return path, orjson.loads(body) if body else None
            else:
                return None

    async def _answer(self, path: str, body: Any) -> tuple[int, Any]:
        self.calls.append((path, body))
        if path == "/health":
            if self.failing_probes:
                self.failing_probes -= 1
                return 503, {"status": "unhealthy"}
            return 200, {"status": "ok"}
        if path == "/publish":
            return await self._publish(body)
        if path == "/subscribe":
            refused = self.refused_filters.get(body["topic"])
            if refused is not None:
                return refused
            self.subscriptions[body["topic"]] = body["callbackUrl"]
            return 200, {"success": True}
        if path == "/unsubscribe":
            self.subscriptions.pop(body["topic"], None)
            return 200, {"success": True}
        return 404, {"error": "no such address"}

    async def _publish(self, body: Any) -> tuple[int, Any]:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.delay:
                await asyncio.sleep(self.delay)
            told = self.judge(body)
            if told is not None:
                return told
            self.published.append(body)
            if self.dies_after is not None and len(self.published) >= self.dies_after:
                self.dies_after = None
                await self.stop()
                raise ConnectionResetError
            return 200, {"success": True}
        finally:
            self.at_once -= 1


@contextlib.asynccontextmanager
async def ts_client(*, absent: bool = False) -> AsyncIterator[TsClient]:
    """One, until the end of the block."""
    made = TsClient()
    if absent:
        await made.start()
        await made.stop()
    else:
        await made.start()
    try:
        yield made
    finally:
        await made.close()
