"""The page about HTTP: its petal works as it says."""

from __future__ import annotations

from websockets.asyncio.client import connect

from .conftest import Serve
from support.procs import ROOT


async def test_the_petal_of_the_page(serve: Serve) -> None:
    text = (ROOT / "docs" / "http.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0]
    names: dict[str, object] = {"__name__": "camera"}
    exec(code, names)
    petal = names["Camera"]
    assert isinstance(petal, type)
    site = await serve(petal())
    assert (await site.post("/petals/camera/shots", json={"exposure_ms": 2})).status_code == 201
    refused = await site.post("/petals/camera/shots", json={"exposure_ms": 0})
    assert (refused.status_code, refused.json()) == (400, {"detail": "the exposure must be more than 0 ms"})
    assert (await site.get("/petals/camera/histogram?bins=2")).json() == {"bins": [None, None]}
    sent = await site.post("/petals/camera/firmware", files={"file": b"x" * (20 << 20)})
    assert sent.json() == {"bytes": 20 << 20}
    async with connect(f"{site.ws}/petals/camera/live", proxy=None) as live:
        assert await live.recv() == '{"fps":10}'


async def test_every_error_of_the_page_is_one_that_is_answered() -> None:
    """And the other way round."""
    text = (ROOT / "docs" / "http.md").read_text()
    rows = text.partition("| status |")[2].partition("\n\n")[0].splitlines()[2:]
    told = {word.strip("` ") for row in rows for word in row.split("|")[2].split(",")}
    code = "".join(path.read_text() for path in (ROOT / "daemon" / "http").glob("*.py"))
    assert len(told) >= 14
    assert [word for word in told if f'"{word}"' not in code] == []
