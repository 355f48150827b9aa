"""LocalDBProxy: the items at a LocalDB service over HTTP, which is a real server here."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import fastapi
import pytest
import uvicorn

from petalbus.petals.proxies.localdb import LocalDBProxy, http

from .localdb_made import MACHINE, local_db

ROOT = "/drone/onBoard/config"
RECORDS = "config-log-flight_record"
INSTANCES = "config-robot_instances"
Calls = list[tuple[str, dict[str, Any]]]


class Service:
    """A LocalDB service: four addresses, a dictionary, and a list of what it was asked."""

    def __init__(self) -> None:
        self.calls: Calls = []
        self.peers: set[Any] = set()
        self.tables: dict[str, dict[str, dict[str, Any]]] = {}
        self.answer: Callable[[], Awaitable[fastapi.Response]] | None = None
        self.app = fastapi.FastAPI()
        for name in ("getData", "scanData", "setData", "updateData"):
            self.app.post(f"{ROOT}/{name}")(self._endpoint(name))
        self.port = 0
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None

    def _endpoint(self, name: str) -> Callable[[fastapi.Request], Awaitable[Any]]:
        async def endpoint(request: fastapi.Request) -> Any:
            body = await request.json()
            self.calls.append((name, copy.deepcopy(body)))
            self.peers.add(request.client)
            assert request.headers["content-type"] == "application/json"
            if self.answer is not None:
                return await self.answer()
            return getattr(self, f"_{name}")(body)

        return endpoint

    def _getData(self, body: dict[str, Any]) -> Any:  # noqa: N802  # the address's name
        return self.tables.get(body["table_name"], {}).get(body["partition_value"], {})

    def _scanData(self, body: dict[str, Any]) -> Any:  # noqa: N802  # the address's name
        found = self.tables.get(body["table_name"], {}).values()
        wanted = {one["filter_key_name"]: one["filter_key_value"] for one in body["scanFilter"]}
        return [item for item in found if all(item.get(name) == value for name, value in wanted.items())]

    def _setData(self, body: dict[str, Any]) -> Any:  # noqa: N802  # the address's name
        self.tables.setdefault(body["table_name"], {})[body["filter_value"]] = body["data"]
        return {"written": body["filter_value"]}

    def _updateData(self, body: dict[str, Any]) -> Any:  # noqa: N802  # the address's name
        self.tables.setdefault(body["table_name"], {}).setdefault(body["filter_value"], {}).update(body["data"])
        return {"updated": body["filter_value"]}

    async def start(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(self.app, log_config=None, lifespan="off", ws="none", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        while not self._server.started:
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await self._serving
        self._server = None


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    made = Service()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def db(service: Service, tmp_path: Path) -> AsyncIterator[LocalDBProxy]:
    """A proxy that has found the service; the calls of that are forgotten."""
    async with local_db(tmp_path, host="127.0.0.1", port=service.port) as proxy:
        assert await proxy.wait_until_ready(5), proxy.reason
        service.calls.clear()
        yield proxy


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


async def test_the_bodies_are_those_of_the_contract(db: LocalDBProxy, service: Service) -> None:
    """C-26, S-009: get, scan, set, update and delete, each with exactly the members that the service expects."""
    assert await db.set_item(RECORDS, "id", "1", {"id": "1", "a": 1}) == {"data": {"written": "1"}, "success": True}
    assert await db.update_item(RECORDS, "id", "1", {"b": 2}) == {"data": {"updated": "1"}, "success": True}
    item = {"id": "1", "a": 1, "b": 2, "robot_instance_id": MACHINE}
    assert await db.get_item(RECORDS, "id", "1") == {"data": item, "success": True}
    filters = [{"filter_key_name": "a", "filter_key_value": 1}]
    assert await db.scan_items(RECORDS, filters) == {"data": [item], "success": True}
    assert filters == [{"filter_key_name": "a", "filter_key_value": 1}]
    assert (await db.delete_item(RECORDS, "id", "1"))["success"]
    key = {"onBoardId": MACHINE, "table_name": RECORDS, "partition_key": "id", "partition_value": "1"}
    write = {"onBoardId": MACHINE, "table_name": RECORDS, "filter_key": "id", "filter_value": "1"}
    own = {"filter_key_name": "robot_instance_id", "filter_key_value": MACHINE}
    assert service.calls == [
        ("setData", {**write, "data": {"id": "1", "a": 1, "robot_instance_id": MACHINE}}),
        ("updateData", {**write, "data": {"b": 2, "robot_instance_id": MACHINE}}),
        ("getData", key),
        ("scanData", {"table_name": RECORDS, "onBoardId": MACHINE, "scanFilter": [*filters, own]}),
        ("getData", key),
        ("updateData", {**write, "data": {**item, "deleted": True}}),
    ]


async def test_what_is_deleted_or_another_machines_is_hidden(db: LocalDBProxy, service: Service) -> None:
    """C-26: also when the service shows it."""
    mine = {"robot_instance_id": MACHINE}
    service.tables[RECORDS] = {
        "1": {"id": "1", **mine},
        "2": {"id": "2", "deleted": True, **mine},
        "3": {"id": "3", "robot_instance_id": "another"},
    }
    assert [(await db.get_item(RECORDS, "id", one)).get("status", 200) for one in "1234"] == [200, 404, 404, 404]
    assert (await db.scan_items(RECORDS))["data"] == [{"id": "1", **mine}]
    assert (await db.delete_item(RECORDS, "id", "4"))["status"] == 404
    assert [name for name, _ in service.calls].count("updateData") == 0


async def test_addresses_can_be_others(service: Service, tmp_path: Path) -> None:
    """S-009: the seven arguments of the signature, by position."""
    service.app.post("/mine")(service._endpoint("getData"))
    scan, update, put = f"{ROOT}/scanData", f"{ROOT}/updateData", f"{ROOT}/setData"
    db = LocalDBProxy(
        "/mine", scan, update, put, "127.0.0.1", service.port, True, file=tmp_path / "a.db", machine_id="M1"
    )
    await db.start()
    try:
        await db.set_item(RECORDS, "id", "1", {"a": 1})
        assert (await db.get_item(RECORDS, "id", "1"))["data"]["a"] == 1
    finally:
        await db.stop()


async def test_sql_stays_in_the_file(db: LocalDBProxy) -> None:
    """C-26: both at once."""
    await db.execute_query("CREATE TABLE t (a)")
    await db.insert("t", {"a": 1})
    assert await db.fetch_all("SELECT a FROM t") == [{"a": 1}]
    assert (await db.health_check())["backend"] == "http"


async def test_the_instance_item_tells_organisation_and_type(service: Service, tmp_path: Path) -> None:
    """C-08: read when the service is found, and again when somebody asks and it was not there."""
    service.tables[INSTANCES] = {MACHINE: {"id": MACHINE, "organization_id": "ORG1", "robot_type_id": "T1"}}
    async with local_db(tmp_path, url=f"http://127.0.0.1:{service.port}/") as db:
        assert await db.wait_until_ready(5)
        assert (db.organization_id, db.robot_type_id) == ("ORG1", "T1")
        asked = len(service.calls)
        assert db.robot_type_id == "T1"
        db._learned_at -= 3600
        assert db.robot_type_id == "T1"
        await asyncio.sleep(0.05)
        assert len(service.calls) == asked


async def test_one_connection_is_used_again(db: LocalDBProxy, service: Service) -> None:
    service.peers.clear()
    for n in range(10):
        await db.set_item(RECORDS, "id", str(n), {})
    assert len(service.peers) == 1


async def test_nothing_is_sent_while_nothing_is_asked(db: LocalDBProxy, service: Service) -> None:
    """No network when idle: neither ready nor away."""
    await asyncio.sleep(0.6)
    assert service.calls == []
    await service.stop()
    assert (await db.get_item(RECORDS, "id", "1"))["status"] == 503
    attempts = 0

    async def refuse(_reader: Any, writer: asyncio.StreamWriter) -> None:
        nonlocal attempts
        attempts += 1
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", service.port):
        await asyncio.sleep(0.6)
        assert attempts == 0


async def test_it_is_ready_when_the_service_comes_and_not_when_it_is_away(tmp_path: Path) -> None:
    """Not ready with a reason; whoever waits finds it; calls answer with an error meanwhile; a call finds it too."""
    service = Service()
    service.port = free_port()
    async with local_db(tmp_path, host="127.0.0.1", port=service.port) as db:
        assert not await db.wait_until_ready(0.1)
        assert f"127.0.0.1:{service.port}" in db.reason
        answer = await db.scan_items(RECORDS)
        assert (answer["status"], answer["error_code"]) == (503, "proxy_not_ready")
        waiting = asyncio.create_task(db.wait_until_ready(20))
        async with asyncio.timeout(10):
            while db._backoff._delay < 1:  # it has looked for it three times
                await asyncio.sleep(0.01)
        await service.start()
        assert await waiting
        await service.stop()
        assert (await db.get_item(RECORDS, "id", "1"))["status"] == 503
        assert not db.is_ready
        assert (await db.health_check())["status"] == "unhealthy"
        await service.start()
        assert (await db.set_item(RECORDS, "id", "1", {}))["success"]
        assert db.is_ready
        await service.stop()


async def test_asking_whether_it_is_ready_looks_for_the_service(tmp_path: Path) -> None:
    """Who only looks at ``is_ready`` now and then finds it as well."""
    service = Service()
    service.port = free_port()
    async with local_db(tmp_path, host="127.0.0.1", port=service.port) as db:
        async with asyncio.timeout(10):
            while not db._backoff._next:  # its own first look was in vain
                await asyncio.sleep(0.01)
        await service.start()
        async with asyncio.timeout(10):
            while not db.is_ready:
                await asyncio.sleep(0.02)
        await service.stop()


async def test_who_watches_is_told_when_it_comes_and_goes(tmp_path: Path) -> None:
    """A runtime whose petals need it does not poll: the proxy looks for the service, and tells."""
    service = Service()
    service.port = free_port()
    told = asyncio.Event()
    async with local_db(tmp_path, host="127.0.0.1", port=service.port) as db:
        db.watch(told.set)
        assert not db.is_ready
        async with asyncio.timeout(10):
            while db._backoff._delay < 1:
                await asyncio.sleep(0.01)
        await service.start()
        await asyncio.wait_for(told.wait(), 10)
        assert db.is_ready
        await service.stop()
        told.clear()
        assert (await db.get_item(RECORDS, "id", "1"))["status"] == 503
        assert told.is_set()
        told.clear()
        await service.start()
        await asyncio.wait_for(told.wait(), 10)
        assert db._ready.is_set()
        await service.stop()


@pytest.mark.parametrize(
    ("status", "content", "told"),
    [
        (500, b"broken", 500),
        (422, b'{"detail": "x"}', 422),
        (200, b"{oops", 502),
        (200, b'"text"', 502),
        (200, b"", 404),
    ],
)
async def test_answers_that_are_none_are_errors(
    db: LocalDBProxy, service: Service, status: int, content: bytes, told: int
) -> None:
    async def answer() -> fastapi.Response:
        return fastapi.Response(content, status)

    service.answer = answer
    result = await db.get_item(RECORDS, "id", "1")
    assert result["status"] == told, result
    assert db.is_ready


async def test_a_service_that_is_silent_is_not_waited_for_long(
    db: LocalDBProxy, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time-out is told, and not tried again."""

    async def answer() -> fastapi.Response:
        await asyncio.sleep(1)
        return fastapi.Response(b"{}")

    service.answer = answer
    assert db._service is not None
    assert db._service._client is not None
    db._service._client.timeout = 0.1
    begun = time.monotonic()
    assert (await db.get_item(RECORDS, "id", "1"))["status"] == 504
    assert (await db.set_item(RECORDS, "id", "1", {}))["error_code"] == "proxy_timeout"
    assert time.monotonic() - begun < 1
    assert len(service.calls) == 2


async def test_an_answer_of_any_size_does_not_fill_the_memory(
    db: LocalDBProxy, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "MAX_ANSWER", 1000)

    async def answer() -> fastapi.Response:
        return fastapi.Response(b'"' + b"x" * 5000 + b'"')

    service.answer = answer
    assert "MiB" in (await db.scan_items(RECORDS))["error"]


async def test_only_reads_are_sent_a_second_time(tmp_path: Path) -> None:
    """When the connection breaks nobody knows whether a write was done: it is the caller's to decide."""
    asked: list[str] = []

    async def breaks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            asked.append(head.split()[1].decode().rsplit("/", 1)[1])
        writer.close()

    async with await asyncio.start_server(breaks, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with local_db(tmp_path, host="127.0.0.1", port=port) as db:
            async with asyncio.timeout(5):
                while len(asked) < 2:  # its own look
                    await asyncio.sleep(0.01)
            asked.clear()
            for call in (
                db.get_item(RECORDS, "id", "1"),
                db.scan_items(RECORDS),
                db.set_item(RECORDS, "id", "1", {}),
                db.update_item(RECORDS, "id", "1", {}),
            ):
                assert (await call)["status"] == 503
    assert asked == ["getData", "getData", "scanData", "scanData", "setData", "updateData"]
