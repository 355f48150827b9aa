"""A petal's routes over a real socket: the framework's semantics, its errors, its limits (S-083, 001, 003)."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

from petalbus.daemon.http import json

from .conftest import Serve, until
from .petals import Alpha, Beta, Large, Odd


async def test_methods_parameters_bodies_and_models_work_as_in_fastapi(serve: Serve) -> None:
    site = await serve(Alpha())
    assert (await site.get("/petals/alpha/plain?count=3")).json() == {"hello": 3, "thread": True}
    assert (await site.get("/petals/alpha/on-loop")).json() == {"running": True}
    made = await site.post("/petals/alpha/items", json={"name": "a"})
    assert (made.status_code, made.json(), made.headers["x-made"]) == (201, {"name": "a", "size": 1.0}, "a")
    put = await site.client.put("/petals/alpha/items/7", json={"name": "a"})
    assert put.json() == {"name": "7:a", "size": 2.5}
    patched = await site.client.patch("/petals/alpha/items/7", json={"x": [1]})
    assert patched.json() == {"id": 7, "x": [1]}
    gone = await site.client.delete("/petals/alpha/items/7")
    assert (gone.status_code, gone.json(), gone.headers["x-hint"]) == (404, {"detail": "no item 7"}, "none")
    assert (await site.get("/petals/alpha/who", headers={"x-who": "me"})).json() == "me"
    wrong = await site.get("/petals/alpha/plain?count=many")
    assert wrong.status_code == 422
    assert wrong.json()["detail"][0]["loc"] == ["query", "count"]


async def test_a_fixed_path_wins_over_a_parameter_whatever_the_methods_are_called(serve: Serve) -> None:
    site = await serve(Alpha())
    assert (await site.get("/petals/alpha/items/latest")).json() == "the latest"
    assert (await site.get("/petals/alpha/items/other")).json() == "item other"


async def test_one_method_is_a_route_and_an_mqtt_command(serve: Serve) -> None:
    """http_action over mqtt_action: the topic is a query parameter, the message the body."""
    site = await serve(Alpha())
    told = await site.post("/petals/alpha/command?topic=t", json={"command": "alpha/do", "payload": {"a": 1}})
    assert told.json() == {"topic": "t", "message": {"command": "alpha/do", "payload": {"a": 1}}}


async def test_an_invalid_body_with_nan_and_bytes_is_named(serve: Serve) -> None:
    site = await serve(Alpha())
    headers = {"content-type": "application/json"}
    nan = await site.post("/petals/alpha/items", content=b'{"name": NaN}', headers=headers)
    assert (nan.status_code, nan.json()["detail"][0]["loc"]) == (422, ["body", "name"])
    no_text = await site.post("/petals/alpha/items", content=b"\xff\xfe", headers={"content-type": "text/plain"})
    assert no_text.status_code == 422
    broken = await site.post("/petals/alpha/items", content=b"{", headers=headers)
    assert (broken.status_code, broken.json()["detail"][0]["type"]) == (422, "json_invalid")


async def test_what_json_does_not_know_is_written_as_near_as_can_be(serve: Serve) -> None:
    """NaN and infinities become null, wherever they are."""
    site = await serve(Alpha())
    assert (await site.get("/petals/alpha/values")).json() == {
        "nan": None,
        "deep": [{"inf": [None, None]}],
        "scalar": 1.5,
        "integer": 7,
        "array": [[1.0, None], [3.0, 4.0]],
        "time": "2026-01-02T00:00:00+00:00",
        "path": "/data/x",
        "model": {"name": "a", "size": None},
        "point": {"x": 1.0, "y": None},
        "set": [1],
        "7": "a number as key",
    }


async def test_a_value_that_cannot_be_json_is_named_in_the_log(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    site = await serve(Alpha())
    answer = await site.get("/petals/alpha/bytes")
    assert (answer.status_code, answer.json()["error"]) == (500, "handler_failed")
    assert "$.frames[0].raw is 2 bytes" in caplog.text


async def test_a_handler_that_raises_tells_its_log_and_not_its_caller(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    site = await serve(Alpha())
    answer = await site.get("/petals/alpha/fails", headers={"x-request-id": "abc-1"})
    assert answer.status_code == 500
    assert answer.json() == {
        "detail": "Internal Server Error",
        "error": "handler_failed",
        "petal": "alpha",
        "request_id": "abc-1",
    }
    assert answer.headers["x-request-id"] == "abc-1"
    (record,) = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert "petal alpha: GET /petals/alpha/fails failed (request abc-1)" in record.getMessage()
    assert "the secret is 1234" in caplog.text
    assert "starlette" not in caplog.text
    assert site.app.statistics()["petals"]["alpha"]["failed"] == 1


async def test_a_handler_has_its_time_and_no_more(serve: Serve) -> None:
    site = await serve(Alpha())
    answer = await site.get("/petals/alpha/slow")
    assert (answer.status_code, answer.json()["error"], answer.json()["petal"]) == (504, "handler_timeout", "alpha")


async def test_threads_that_hang_are_counted_and_bounded(serve: Serve) -> None:
    """A plain handler that hangs keeps its thread; the petal's others run in those that are left, other petals too."""
    petal = Alpha()
    site = await serve(petal, Beta(), petal_threads=2)
    try:
        answers = await asyncio.gather(*(site.get("/petals/alpha/hangs") for _ in range(3)))
        assert [answer.status_code for answer in answers] == [504] * 3
        assert petal.waiting == 2
        assert site.app.statistics()["petals"]["alpha"]["in_threads"] == 2
        assert (await site.get("/petals/alpha/on-loop")).status_code == 200
        assert (await site.get("/petals/beta/time")).status_code == 200
    finally:
        petal.thread_gate.set()
    await until(lambda: site.app.statistics()["petals"]["alpha"]["in_threads"] == 0)
    assert (await site.get("/petals/alpha/plain")).json()["thread"] is True


async def test_more_requests_than_a_petal_may_have_are_told_to_come_again(serve: Serve) -> None:
    petal = Alpha()
    site = await serve(petal, Beta(), petal_requests=2)
    waiting = [asyncio.create_task(site.get("/petals/alpha/waits")) for _ in range(2)]
    await until(lambda: petal.waiting == 2)
    refused = await site.get("/petals/alpha/plain")
    assert (refused.status_code, refused.json()["error"]) == (503, "too_many_requests")
    assert refused.headers["retry-after"] == "1"
    assert (await site.get("/petals/beta/time")).status_code == 200
    petal.gate.set()
    assert [(await one).json() for one in waiting] == ["done", "done"]
    assert (await site.get("/petals/alpha/plain")).status_code == 200


async def test_a_large_answer_lets_the_loop_run_meanwhile(serve: Serve) -> None:
    site = await serve(Large())
    longest = 0.0
    stop = asyncio.Event()
    encoding = asyncio.Event()

    async def watch() -> None:
        nonlocal longest
        while not stop.is_set():
            began = time.perf_counter()
            await asyncio.sleep(0)
            if encoding.is_set():
                longest = max(longest, time.perf_counter() - began)
            await asyncio.sleep(0.001)

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0)
    encoding.set()
    whole = await json.encode_large({"rows": Large.rows})
    stop.set()
    await watching
    began = time.perf_counter()
    at_once = json.encode({"rows": Large.rows})
    held = time.perf_counter() - began
    assert whole == at_once
    assert longest < max(0.1, held / 2)
    assert len((await site.get("/petals/large/all")).json()["rows"]) == 100_000


async def test_a_route_that_cannot_be_served_says_so_and_the_others_work(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    site = await serve()
    problems = await site.mounts.mount_petal(Odd())
    bad = await site.get("/petals/odd/bad")
    assert (bad.status_code, bad.json()["error"]) == (500, "route_unusable")
    assert "Lock" in bad.json()["detail"]
    assert (await site.get("/petals/odd/loose")).json() == {"a": 1}
    assert len(problems) == 2
    assert any("unheard_of" in problem for problem in problems)
    assert "/petals/odd/loose" in (await site.get("/openapi.json")).json()["paths"]


async def test_closures_set_at_startup_are_routes_too(serve: Serve) -> None:
    petal = Beta()

    async def told(word: str) -> dict[str, str]:
        return {"word": word}

    told.__petal_action__ = {"protocol": "http", "method": "GET", "path": "/told"}  # type: ignore[attr-defined]  # contract
    petal.told = told  # type: ignore[attr-defined]  # as petals do
    site = await serve(petal)
    assert (await site.get("/petals/beta/told?word=x")).json() == {"word": "x"}
