"""Who may call, how much may be sent, and how slowly: HTTP is for this computer, and DNS rebinding is kept out."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from petalbus.daemon.http.options import HttpOptions

from .conftest import Serve, Site, deaf_client, until
from .petals import Alpha

PAGE = "https://ground.example"


async def raw(site: Site, text: str, *, seconds: float = 5.0) -> bytes:
    """Everything that the server answers to some bytes, until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.write(text.encode())
    try:
        async with asyncio.timeout(seconds):
            return await reader.read()
    finally:
        writer.transport.abort()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST.:1", 200),
        ("127.0.0.1:9000", 200),
        ("127.9.9.9", 200),
        ("[::1]:9000", 200),
        ("drone.lan", 200),
        ("a.field.example:80", 200),
        ("field.example", 403),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example", 403),
        ("192.168.1.7", 403),
        ("", 403),
    ],
)
async def test_only_names_of_this_server_are_answered(serve: Serve, host: str, status: int) -> None:
    """A page that lets its own name point to 127.0.0.1 calls us by that name (DNS rebinding)."""
    site = await serve(Alpha(), allowed_hosts=("drone.lan", "*.field.example"))
    for _ in range(2):
        answer = await site.get("/petals/alpha/plain", headers={"host": host})
        assert answer.status_code == status
    assert site.app.statistics()["host_refused"] == (0 if status == 200 else 2)


async def test_no_host_and_two_hosts_are_refused(serve: Serve) -> None:
    site = await serve(Alpha())
    none = await raw(site, "GET /petals/alpha/plain HTTP/1.0\r\n\r\n")
    assert none.startswith(b"HTTP/1.1 400")
    two = "GET /petals/alpha/plain HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    assert b"403" in (await raw(site, two)).splitlines()[0]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://localhost:1234", "host": "localhost:1234"}, 200),
        ({"origin": PAGE}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "http://localhost:3000"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
    ],
)
async def test_a_page_of_somebody_else_s_changes_nothing(serve: Serve, headers: dict[str, str], status: int) -> None:
    site = await serve(Alpha(), allowed_origins=(PAGE,))
    patched = await site.client.patch("/petals/alpha/items/1", json={}, headers=headers)
    assert patched.status_code == status
    if status == 403:
        assert patched.json()["error"] == "origin_refused"
        assert "access-control-allow-origin" not in patched.headers


async def test_websockets_of_foreign_pages_are_refused(serve: Serve) -> None:
    site = await serve(Alpha(), allowed_origins=(PAGE,))
    with pytest.raises(InvalidStatus) as refused:
        await connect(f"{site.ws}/petals/alpha/ws", proxy=None, origin="https://evil.example")  # type: ignore[arg-type]  # NewType
    assert refused.value.response.status_code == 403
    for origin in (PAGE, site.url):
        async with connect(f"{site.ws}/petals/alpha/ws", proxy=None, origin=origin) as there:  # type: ignore[arg-type]  # NewType
            await there.send("a")
            assert await there.recv() == "a"
    with pytest.raises(InvalidStatus):
        await connect(f"{site.ws}/petals/alpha/ws", proxy=None, additional_headers={"sec-fetch-site": "cross-site"})


async def test_pages_that_are_allowed_may_read_and_ask_first(serve: Serve) -> None:
    site = await serve(Alpha(), allowed_origins=(PAGE,))
    asked = {"origin": PAGE, "access-control-request-method": "PATCH", "access-control-request-headers": "x-a"}
    first = await site.client.options("/petals/alpha/items/1", headers=asked)
    assert first.status_code == 204
    assert first.headers["access-control-allow-origin"] == PAGE
    assert "PATCH" in first.headers["access-control-allow-methods"]
    assert first.headers["access-control-allow-headers"] == "x-a"
    read = await site.get("/petals/alpha/plain", headers={"origin": PAGE})
    assert (read.headers["access-control-allow-origin"], read.headers["vary"]) == (PAGE, "Origin")
    other = await site.get("/petals/alpha/plain", headers={"origin": "https://evil.example"})
    assert other.status_code == 200
    assert "access-control-allow-origin" not in other.headers


async def test_a_body_has_its_largest_size(serve: Serve) -> None:
    """By what it declares, and by what comes; uploads and routes that say so may have more."""
    site = await serve(Alpha(), body_limit=1000, upload_limit=100_000)
    declared = await site.post("/petals/alpha/items", json={"name": "x" * 1000})
    assert (declared.status_code, declared.json()["error"]) == (413, "body_too_large")

    async def pieces() -> Any:
        for _ in range(30):
            yield b"x" * 100

    streamed = await site.post("/petals/alpha/items", content=pieces())
    assert streamed.status_code == 413
    upload = await site.post("/petals/alpha/upload", files={"file": ("log.ulg", b"x" * 90_000)})
    assert upload.json() == {"name": "log.ulg", "size": 90_000}
    too_large = await site.post("/petals/alpha/upload", files={"file": ("log.ulg", b"x" * 110_000)})
    assert (too_large.status_code, too_large.json()["error"]) == (413, "body_too_large")
    allowed = await site.post("/petals/alpha/stream", content=b"y" * 500_000)
    assert allowed.json() == 500_000
    assert (await site.get("/petals/alpha/plain")).status_code == 200


async def test_a_head_that_does_not_come_ends_the_connection(serve: Serve) -> None:
    site = await serve(Alpha(), head_timeout=0.1)
    assert (await raw(site, "")).startswith(b"HTTP/1.1 408")
    assert (await raw(site, "GET /petals/alpha/plain HTTP/1.1\r\nHost: loc")).startswith(b"HTTP/1.1 408")
    second = "GET /petals/alpha/plain HTTP/1.1\r\nHost: localhost\r\n\r\nGET /petals"
    answers = await raw(site, second)
    assert answers.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 408" in answers


async def test_a_head_without_an_end_is_refused(serve: Serve) -> None:
    site = await serve(Alpha())
    answer = await raw(site, "GET /petals/alpha/plain HTTP/1.1\r\nHost: localhost\r\nX: " + "x" * (1 << 17))
    assert b"431" in answer.splitlines()[0]
    assert b"head_too_large" in answer


async def test_a_body_that_does_not_come_ends_the_connection(serve: Serve) -> None:
    site = await serve(Alpha(), body_timeout=0.1)
    head = "Host: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
    answer = await raw(site, f"POST /petals/alpha/items HTTP/1.1\r\n{head}{{")
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"body_too_slow" in answer
    assert site.app.statistics()["too_slow"] == 1


async def test_a_client_that_does_not_read_its_answer_is_cut_off(serve: Serve) -> None:
    petal = Alpha()
    site = await serve(petal, write_timeout=0.2)
    with deaf_client(site, "/petals/alpha/endless"):
        await until(lambda: petal.sent > 0)
        assert site.app.statistics()["requests_open"] == 1
        await until(lambda: site.app.statistics()["requests_open"] == 0)


async def test_a_stream_ends_when_its_client_is_gone(serve: Serve) -> None:
    petal = Alpha()
    site = await serve(petal)
    with deaf_client(site, "/petals/alpha/endless"):
        await until(lambda: petal.sent > 0)
        assert site.app.statistics()["requests_open"] == 1
    await until(lambda: site.app.statistics()["requests_open"] == 0)


async def test_there_are_so_many_connections_and_no_more(serve: Serve) -> None:
    site = await serve(Alpha(), connections=3)
    idle = [await asyncio.open_connection("127.0.0.1", site.port) for _ in range(3)]
    await until(lambda: site.server.statistics()["connections"] == 3)
    refused = await raw(site, "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert refused.startswith(b"HTTP/1.1 503")
    assert json.loads(refused.partition(b"\r\n\r\n")[2])["error"] == "too_many_connections"
    for _, writer in idle:
        writer.transport.abort()
    await until(lambda: site.server.statistics()["connections"] == 0)
    assert (await site.get("/health")).status_code == 200


async def test_requests_behind_each_other_on_one_connection_are_answered_in_order(serve: Serve) -> None:
    site = await serve(Alpha())
    one = "GET /petals/alpha/plain?count={} HTTP/1.1\r\nHost: localhost\r\n{}\r\n"
    answers = await raw(site, one.format(1, "") + one.format(2, "") + one.format(3, "Connection: close\r\n"))
    assert [int(part.partition(b'hello":')[2][:1]) for part in answers.split(b"HTTP/1.1 200")[1:]] == [1, 2, 3]


async def test_a_request_s_id_is_its_own_when_it_is_a_word(serve: Serve) -> None:
    site = await serve(Alpha())
    own = await site.get("/petals/alpha/plain", headers={"x-request-id": "abc_1-2"})
    assert own.headers["x-request-id"] == "abc_1-2"
    odd = await site.get("/petals/alpha/plain", headers={"x-request-id": "a b\tc"})
    assert odd.headers["x-request-id"] not in ("a b\tc", "")
    assert odd.headers["date"].endswith("GMT")


def test_options_come_from_settings_that_may_lack_them() -> None:
    class Some:
        http_port = 1234
        http_allowed_hosts = "a.lan, b.lan"

    options = HttpOptions.of(Some())
    assert (options.port, options.host, options.allowed_hosts) == (1234, "127.0.0.1", ("a.lan", "b.lan"))
