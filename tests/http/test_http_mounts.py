"""Petals come and go at run time, and nobody else notices (S-083: petals are managed while the others run)."""

from __future__ import annotations

import asyncio

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from petalbus.daemon.http.petal_app import petal_app

from .conftest import OPTIONS, Serve, until
from .petals import Alpha, Beta, Odd


async def test_unknown_and_absent_petals_are_told_apart(serve: Serve) -> None:
    site = await serve(Beta())
    site.mounts.set_state("alpha", "waiting", "proxy ext_mavlink is not there")
    unknown = await site.get("/petals/gamma/x")
    assert (unknown.status_code, unknown.json()["error"]) == (404, "unknown_petal")
    assert unknown.json()["petals"] == ["alpha", "beta"]
    waiting = await site.get("/petals/alpha/plain")
    assert (waiting.status_code, waiting.json()["state"]) == (503, "waiting")
    assert "proxy ext_mavlink is not there" in waiting.json()["detail"]
    assert waiting.headers["retry-after"]
    site.mounts.forget("alpha")
    assert (await site.get("/petals/alpha/plain")).status_code == 404
    assert (await site.get("/petals/beta/nothing")).json() == {"detail": "Not Found"}


async def test_an_absent_petal_s_websocket_is_refused_with_the_reason(serve: Serve) -> None:
    site = await serve()
    site.mounts.set_state("alpha", "failed", "it raised")
    with pytest.raises(InvalidStatus) as refused:
        await connect(f"{site.ws}/petals/alpha/ws", proxy=None)
    assert refused.value.response.status_code == 503
    assert b"it raised" in refused.value.response.body


async def test_unmounting_one_petal_touches_nobody_else(serve: Serve) -> None:
    """Its websockets are closed with 1012, its requests may finish, and the other petal's go on as they were."""
    alpha, beta = Alpha(), Beta()
    site = await serve(alpha, beta)
    async with (
        connect(f"{site.ws}/petals/alpha/ws", proxy=None) as mine,
        connect(f"{site.ws}/petals/beta/ws", proxy=None) as other,
    ):
        await mine.send("a")
        assert await mine.recv() == "a"
        request = asyncio.create_task(site.get("/petals/alpha/waits"))
        await until(lambda: alpha.waiting == 1)
        unmounting = asyncio.create_task(site.mounts.unmount("alpha", state="restarting", timeout=5))
        with pytest.raises(ConnectionClosed):
            await mine.recv()
        assert mine.close_code == 1012
        assert mine.close_reason == "petal alpha is restarting"
        assert (await site.get("/petals/alpha/plain")).status_code == 503
        assert not unmounting.done()
        alpha.gate.set()
        assert (await request).json() == "done"
        await unmounting
        assert alpha.sockets == []
        assert alpha.disconnects == [1012]
        await other.send("still here")
        assert await other.recv() == "still here"
        site.mounts.mount("alpha", petal_app(Alpha(), options=OPTIONS))
        assert (await site.get("/petals/alpha/plain")).status_code == 200
        await other.send("and here")
        assert await other.recv() == "and here"


async def test_what_does_not_end_by_itself_is_ended(serve: Serve) -> None:
    alpha = Alpha()
    site = await serve(alpha)
    request = asyncio.create_task(site.get("/petals/alpha/waits"))
    async with connect(f"{site.ws}/petals/alpha/stubborn", proxy=None):
        await until(lambda: alpha.waiting == 1)
        await site.mounts.unmount("alpha", timeout=0.05)
    answer = await request
    assert (answer.status_code, answer.json()["error"]) == (503, "stopped")
    assert alpha.waiting == 0
    assert site.app.statistics()["requests_open"] == 0
    assert site.app.statistics()["websockets_open"] == 0


async def test_a_name_is_mounted_once(serve: Serve) -> None:
    site = await serve(Beta())
    with pytest.raises(ValueError, match="mounted already"):
        site.mounts.mount("beta", petal_app(Beta(), options=OPTIONS))
    with pytest.raises(ValueError, match="without slashes"):
        site.mounts.mount("a/b", petal_app(Beta(), options=OPTIONS))


async def test_one_description_of_everything(serve: Serve) -> None:
    """Prefixed paths, models of the same name kept apart, websockets listed, tags kept."""
    site = await serve(Alpha(), Beta())
    whole = (await site.get("/openapi.json")).json()
    assert {"/health", "/petals/alpha/plain", "/petals/beta/items"} <= set(whole["paths"])
    assert {"alpha.Item", "beta.Item"} <= set(whole["components"]["schemas"])
    assert set(whole["components"]["schemas"]["alpha.Item"]["properties"]) == {"name", "size"}
    assert set(whole["components"]["schemas"]["beta.Item"]["properties"]) == {"weight"}
    assert (await site.post("/petals/beta/items", json={"weight": 2})).json() == {"weight": 2}
    plain = whole["paths"]["/petals/alpha/plain"]["get"]
    assert (plain["summary"], plain["tags"], plain["description"]) == ("A plain one", ["words"], "It says hello.")
    body = whole["paths"]["/petals/alpha/items"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/alpha.Item"}
    assert {"path": "/petals/alpha/ws", "name": "An echo of words", "description": "Sends back what it gets."} in whole[
        "x-websockets"
    ]
    ids = [one["operationId"] for path in whole["paths"].values() for one in path.values()]
    assert len(ids) == len(set(ids))
    await site.mounts.unmount("beta")
    assert "/petals/beta/items" not in (await site.get("/openapi.json")).json()["paths"]


async def test_a_petal_that_cannot_be_described_keeps_nobody_else_from_it(serve: Serve) -> None:
    site = await serve(Odd(), Beta())
    whole = (await site.get("/openapi.json")).json()
    assert {"/petals/odd/undescribed", "/petals/odd/loose", "/petals/beta/items"} <= set(whole["paths"])
    assert "this has no shape" in whole["paths"]["/petals/odd/undescribed"]["post"]["description"]
    assert (await site.post("/petals/odd/undescribed", json={"value": 1})).json() == "taken"


async def test_the_page_of_the_description_needs_no_other_server(serve: Serve) -> None:
    """The vehicle is offline: nothing on the page has an address of somebody else's."""
    site = await serve(Alpha())
    page = await site.get("/docs")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    texts = [page.text]
    for file, kind in (("docs.js", "javascript"), ("docs.css", "css")):
        answer = await site.get(f"/docs/{file}")
        assert answer.status_code == 200
        assert kind in answer.headers["content-type"]
        texts.append(answer.text)
    assert not any("//" in text.replace("// ", "").replace("https://", "//") and "http" in text for text in texts)
    assert (await site.get("/docs/docs.html")).status_code == 404


async def test_routers_of_the_core_are_added_before_and_after_the_start(serve: Serve) -> None:
    from fastapi import APIRouter

    def router(word: str) -> APIRouter:
        made = APIRouter()

        @made.get(f"/{word}")
        async def told() -> dict[str, float]:
            return {word: float("nan")}

        return made

    site = await serve(build=lambda app: app.include(lambda: router("early"), prefix="/api"))
    site.app.include(lambda: router("late"))
    assert (await site.get("/api/early")).json() == {"early": None}
    assert (await site.get("/late")).json() == {"late": None}
    assert {"/api/early", "/late"} <= set((await site.get("/openapi.json")).json()["paths"])
    health = (await site.get("/health")).json()
    assert (health["status"], "timestamp" in health) == ("healthy", True)
