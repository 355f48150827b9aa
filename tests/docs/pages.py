"""The documents as text: their examples, tables, links and headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from support.procs import ROOT

DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = sorted(DOCS.rglob("*.md"))
DOCUMENTS = [README, ROOT / "deploy" / "README.md", *PAGES]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)


class Example(NamedTuple):
    """A fenced block: its page, the line of its first line of code, and the code."""

    page: Path
    line: int
    code: str

    @property
    def label(self) -> str:
        """Name of the example in a test's id."""
        return f"{name_of(self.page)}:{self.line}"


def name_of(page: Path) -> str:
    """A page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


def examples(page: Path, language: str) -> list[Example]:
    """The fenced blocks of a language."""
    text = page.read_text(encoding="utf-8")
    return [
        Example(page, text.count("\n", 0, found.start(2)) + 1, found[2])
        for found in _FENCE.finditer(text)
        if found[1] == language
    ]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> Iterator[str]:
    """The targets of a page's links."""
    yield from _LINK.findall(_INLINE.sub("`", prose(page)))


def anchors(page: Path) -> set[str]:
    """What a link to a heading of the page may say behind its #."""
    return {anchor(heading) for heading in _HEADING.findall(prose(page))}


def anchor(heading: str) -> str:
    """A heading as the part of an address: small letters, words joined by hyphens, nothing else."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def table(page: Path, first_column: str) -> list[list[str]]:
    """The rows of the page's table whose first column has that title, cells stripped."""
    lines = iter(prose(page).splitlines())
    for line in lines:
        if line.startswith(f"| {first_column} |"):
            next(lines)
            break
    else:
        raise AssertionError(f"{name_of(page)} has no table whose first column is {first_column!r}")
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
    return rows
