"""A petal's files and templates (petal-contract: static_dir, template_dir, inject_templates)."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fastapi import Request

from petalbus.daemon.http.files import NoFolder, folder_of, templates_of
from petalbus.petals.base import Petal
from petalbus.petals.decorators import http_action

from .conftest import Serve


def make(name: str, **members: Any) -> Petal:
    """A petal of a module of its own class."""
    made: Petal = type("Made", (Petal,), {"name": name, "version": "1", **members})()
    return made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An installation's folder with files of a petal named ``shown``."""
    static = tmp_path / "static" / "shown"
    static.mkdir(parents=True)
    (static / "a.txt").write_text("0123456789")
    (static / "index.html").write_text("<p>index")
    (tmp_path / "static" / "secret.txt").write_text("secret")
    (static / "link.txt").symlink_to(tmp_path / "static" / "secret.txt")
    templates = tmp_path / "templates" / "shown"
    templates.mkdir(parents=True)
    (templates / "page.html").write_text("<p>{{ word }} at {{ url_for('page') }}</p>")
    (templates / "broken.html").write_text("{% if %}")
    (tmp_path / "secret.html").write_text("secret")
    return tmp_path


async def test_static_files_with_etag_and_ranges(serve: Serve, root: Path) -> None:
    site = await serve(make("shown", static_dir="static"), root=root)
    whole = await site.get("/static/shown/a.txt")
    assert (whole.status_code, whole.text) == (200, "0123456789")
    assert whole.headers["content-type"].startswith("text/plain")
    again = await site.get("/static/shown/a.txt", headers={"if-none-match": whole.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    part = await site.get("/static/shown/a.txt", headers={"range": "bytes=2-4"})
    assert (part.status_code, part.text, part.headers["content-range"]) == (206, "234", "bytes 2-4/10")
    assert (await site.get("/static/shown/")).text == "<p>index"
    assert (await site.get("/static/shown/none.txt")).status_code == 404
    assert (await site.post("/static/shown/a.txt")).status_code == 405
    assert (await site.get("/static/other/a.txt")).status_code == 404


@pytest.mark.parametrize(
    "path",
    ["../secret.txt", "%2e%2e/secret.txt", "..%2fsecret.txt", "a/../../secret.txt", "link.txt", "%00", "/etc/passwd"],
)
async def test_nothing_outside_of_the_folder_is_served(serve: Serve, root: Path, path: str) -> None:
    site = await serve(make("shown", static_dir="static"), root=root)
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.write(f"GET /static/shown/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.transport.abort()
    assert answer.split()[1] in (b"404", b"400")
    assert b"secret" not in answer.partition(b"\r\n\r\n")[2]
    assert b"root:" not in answer


async def test_files_beside_the_petal_s_module_come_first(root: Path, tmp_path: Path) -> None:
    beside = tmp_path / "package" / "web"
    beside.mkdir(parents=True)
    module = ModuleType("a_petal_s_module")
    module.__file__ = str(tmp_path / "package" / "plugin.py")
    sys.modules["a_petal_s_module"] = module
    try:
        petal = make("shown", __module__="a_petal_s_module")
        assert folder_of(petal, "web", kind="static", root=root) == beside
        assert folder_of(petal, "other", kind="static", root=root) == root / "static" / "shown"
        assert folder_of(petal, str(beside), kind="static", root=None) == beside
        with pytest.raises(NoFolder, match=r"petal 'shown': there is no folder 'none'; looked at .*package/none"):
            folder_of(petal, "none", kind="static", root=None)
    finally:
        del sys.modules["a_petal_s_module"]


async def test_a_missing_folder_is_a_problem_of_its_petal_alone(serve: Serve, tmp_path: Path) -> None:
    site = await serve()
    problems = await site.mounts.mount_petal(make("shown", static_dir="nowhere"))
    assert "there is no folder 'nowhere'" in problems[0]
    assert (await site.get("/static/shown/a.txt")).status_code == 404


async def test_templates_are_filled_in_and_escape(serve: Serve, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In both orders of arguments that petals use; what comes from outside is no HTML."""

    async def page(self: Petal, request: Request, old: bool = False) -> Any:
        shown = {"word": "<script>"}
        if old:
            return self.templates["default"].TemplateResponse("page.html", {"request": request, **shown})
        return self.templates["default"].TemplateResponse(request, "page.html", shown)

    petal = make("shown", template_dir="templates", page=http_action("GET", "/page")(page))
    petal.inject_templates(templates_of(petal, root=root))
    assert "template broken.html cannot be used" in caplog.text
    site = await serve(petal, root=root)
    for query in ("", "?old=true"):
        answer = await site.get(f"/petals/shown/page{query}")
        assert answer.headers["content-type"].startswith("text/html")
        assert answer.text == f"<p>&lt;script&gt; at {site.url}/petals/shown/page</p>"
    assert templates_of(make("none")) == {}
    from jinja2 import TemplateNotFound

    with pytest.raises(TemplateNotFound):
        petal.templates["default"].get_template("../../secret.html")
