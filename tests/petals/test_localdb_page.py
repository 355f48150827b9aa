"""The examples of docs/localdb.md and docs/organization.md run as they stand there."""

from __future__ import annotations

import ast
import inspect
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from docs.pages import DOCS, Example, examples
from petalbus.petals.organization import OrganizationManager, set_organization_manager
from petalbus.petals.proxies.localdb import LocalDBProxy

from .localdb_made import local_db

PAGE = DOCS / "localdb.md"
PETAL, *BODIES = examples(PAGE, "python")
ORGANIZATION = examples(DOCS / "organization.md", "python")


async def run(example: Example, **names: Any) -> dict[str, Any]:
    code = compile("\n" * (example.line - 1) + example.code, str(example.page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    ended = eval(code, names)
    if inspect.iscoroutine(ended):
        await ended
    return names


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[LocalDBProxy]:
    """The proxy as the page says: with the table that its petal makes."""
    async with local_db(tmp_path) as proxy:
        petal = (await run(PETAL))["Logbook"]()
        petal.inject_proxies({"db": proxy})
        await petal.async_startup()
        yield proxy


@pytest.mark.parametrize("example", BODIES, ids=lambda example: example.label)
async def test_examples_run_as_they_stand(example: Example, db: LocalDBProxy) -> None:
    await run(example, db=db)


def test_there_are_examples() -> None:
    assert len(BODIES) >= 5
    assert len(ORGANIZATION) == 1


async def test_the_organisations_example_runs(tmp_path: Path) -> None:
    """S-207."""
    manager = OrganizationManager(tmp_path / "thing-parameters.json", data=tmp_path)
    set_organization_manager(manager)
    await manager.start()
    try:
        assert (await run(ORGANIZATION[0]))["organization_id"] is None
    finally:
        await manager.stop()
        set_organization_manager(None)
