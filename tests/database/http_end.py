"""Real HTTP servers for tests: the cloud's config service with its token service, and a relay to DynamoDB."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, Self

from support.s3_world import free_port


class HttpEnd:
    """An HTTP/1.1 server on a port of its own that can be shut and opened again. A subclass answers."""

    def __init__(self) -> None:
        self.port = free_port()
        self.requests = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.shut()

    async def open(self) -> None:
        """Be there."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def shut(self) -> None:
        """Be gone: connections break."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
            for _ in range(4):  # what is just being accepted is among the writers then
                await asyncio.sleep(0)
            for writer in list(self._writers):
                writer.transport.abort()

    async def answer(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes] | None:
        """Status and content; None: break the connection."""
        raise NotImplementedError

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            lines = head.split("\r\n")
            headers = {
                name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:] if ": " in line)
            }
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            self.requests += 1
            told = await self.answer(lines[0].split()[1], headers, body)
            if told is None:
                writer.transport.abort()
                return
            status, content = told
            kind = "application/x-amz-json-1.0" if "x-amz-target" in headers else "application/json"
            start = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n"
            writer.write(start.encode() + b"Connection: close\r\n\r\n" + content)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()


class CloudService(HttpEnd):
    """The config service. ``writes``: those that were done, in order; ``trouble``: says what to answer instead."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[str, dict[str, dict[str, Any]]] = {}
        self.writes: list[tuple[str, dict[str, Any]]] = []
        self.valid = "token-1"
        self.gives: str | None = None
        self.tokens = 0
        self.token_status = 200
        self.lose_answers = 0
        self.wait = asyncio.Event()
        self.wait.set()
        self.trouble: Callable[[str, dict[str, Any]], tuple[int, bytes] | None] = lambda _call, _body: None

    async def answer(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes] | None:
        """See HttpEnd."""
        if path == "/token":
            self.tokens += 1
            return self.token_status, json.dumps({"accessToken": self.gives or self.valid}).encode()
        if headers.get("authorization") != f"Bearer {self.valid}":
            return 401, b'{"message": "unauthorised"}'
        call, told = path.rpartition("/")[2], json.loads(body)
        trouble = self.trouble(call, told)
        if trouble is not None:
            return trouble
        answer = self._do(call, told)
        if call in ("setData", "updateData"):
            await self.wait.wait()
            if self.lose_answers:
                self.lose_answers -= 1
                return None
        return 200, json.dumps(answer).encode()

    def _do(self, call: str, body: dict[str, Any]) -> Any:
        table = self.tables.setdefault(body["table_name"], {})
        if call == "getData":
            return table.get(body["partition_value"], {})
        if call == "scanData":
            wanted = {one["filter_key_name"]: one["filter_key_value"] for one in body["scanFilter"]}
            return [item for item in table.values() if all(item.get(name) == value for name, value in wanted.items())]
        self.writes.append((call, body))
        if call == "setData":
            table[body["filter_value"]] = body["data"]
        else:
            table.setdefault(body["filter_value"], {}).update(body["data"])
        return {"ok": True}


class Relay(HttpEnd):
    """Between a client and DynamoDB. ``trouble``: gives an answer in its place, or another body to be sent on."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._target = port
        self.calls: list[str] = []
        self.lose_answers = 0
        self.extra: dict[str, Any] = {}
        self.trouble: Callable[[str, dict[str, Any]], tuple[int, dict[str, Any]] | dict[str, Any] | None] = (
            lambda _call, _body: None
        )

    async def answer(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes] | None:
        """See HttpEnd."""
        if path == "/token":
            return 200, json.dumps({"accessKeyId": "a", "secretAccessKey": "b", "sessionToken": "c"}).encode()
        call = headers["x-amz-target"].rpartition(".")[2]
        self.calls.append(call)
        told = self.trouble(call, json.loads(body))
        if isinstance(told, tuple):
            return told[0], json.dumps(told[1]).encode()
        status, content = await self._forward(path, headers, body if told is None else json.dumps(told).encode())
        if self.extra:
            content = json.dumps({**json.loads(content), **self.extra}).encode()
            self.extra = {}
        if self.lose_answers and call in ("PutItem", "UpdateItem"):
            self.lose_answers -= 1
            return None
        return status, content

    async def _forward(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._target)
        sent = {**headers, "content-length": str(len(body)), "connection": "close"}
        head = f"POST {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in sent.items())
        writer.write(head.encode() + b"\r\n" + body)
        answered = await reader.readuntil(b"\r\n\r\n")
        lines = answered.decode().lower().split("\r\n")
        length = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length:"))
        content = await reader.readexactly(length)
        writer.close()
        return int(lines[0].split()[1]), content
