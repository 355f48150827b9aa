"""Links between the documents: each leads somewhere, and every page is reached from the index."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .pages import DOCS, DOCUMENTS, PAGES, README, anchors, links, name_of

INDEX = DOCS / "index.md"
OUTSIDE = re.compile(r"^[a-z]+:")


def targets(page: Path) -> set[Path]:
    """The files that a page links to."""
    return {
        (page.parent / target.partition("#")[0]).resolve()
        for target in links(page)
        if not OUTSIDE.match(target) and not target.startswith("#")
    }


@pytest.mark.parametrize("page", DOCUMENTS, ids=name_of)
def test_relative_links_lead_somewhere(page: Path) -> None:
    """To a file that is there, and to a heading of it where one is named."""
    for target in links(page):
        if OUTSIDE.match(target):
            continue
        path, _, heading = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{name_of(page)} links to {target}, which is not there"
        if heading:
            assert heading in anchors(file), f"{name_of(page)} links to {target}: there is no such heading"


def test_every_page_is_linked_from_the_index() -> None:
    assert {page for page in PAGES if page != INDEX} - targets(INDEX) == set()


def test_the_index_is_linked_from_the_readme() -> None:
    assert INDEX in targets(README)


def test_decisions_are_numbered_without_gaps() -> None:
    names = [page.name for page in PAGES if page.parent.name == "decisions"]
    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))
