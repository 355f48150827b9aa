"""The specification's own samples, read from beside the checkout when the tests run; nothing of them is kept here."""

from __future__ import annotations

import importlib
import itertools
import os
import re
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from support.procs import ROOT

FOLDER = Path(os.environ.get("SPECIFICATION_FOLDER") or ROOT.parent / "shared" / "spec")
PROXIES = "using-proxies.rst"
TWO_WAY = "redis-two-way-communication.md"
MQTT = "mqtt-integration.md"
MQTT_PETAL = "mqtt-petal-integration.md"
BUCKET = "s3-bucket-proxy.md"

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_numbers = itertools.count(1)

PRELUDE = """
import asyncio, json, logging, time
from datetime import datetime
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional
from petal_app_manager.plugins.base import Petal
logger = log = logging.getLogger("sample")
"""
"""What the samples use without importing it."""


def text_of(document: str) -> str:
    """A document; the test is skipped where it is not there."""
    path = FOLDER / document
    if not path.is_file():
        pytest.skip(f"the specification is not beside this checkout: no {path}")
    return path.read_text(encoding="utf-8")


def blocks(document: str, language: str = "python") -> list[str]:
    """The code blocks of a document, in order."""
    text = text_of(document)
    if document.endswith(".md"):
        return [found[2] for found in _FENCE.finditer(text) if found[1] == language]
    found, lines, at = [], text.split("\n"), 0
    while at < len(lines):
        if lines[at].strip() == f".. code-block:: {language}":
            at += 1
            block = []
            while at < len(lines) and (not lines[at].strip() or lines[at].startswith("   ")):
                block.append(lines[at])
                at += 1
            found.append(textwrap.dedent("\n".join(block)).strip("\n") + "\n")
        else:
            at += 1
    return found


def block(document: str, containing: str, *, language: str = "python", nth: int = 0) -> str:
    """The ``nth`` code block of a document that contains a text."""
    found = [one for one in blocks(document, language) if containing in one]
    assert len(found) > nth, f"{document} has {len(found)} {language} blocks with {containing!r}"
    return found[nth]


def load(code: str, folder: Path, *, prelude: str = PRELUDE) -> ModuleType:
    """A sample as a module of a package that has a ``logger``, as samples expect it."""
    package = f"spec_sample_{next(_numbers)}"
    (folder / package).mkdir()
    (folder / package / "__init__.py").write_text('import logging\nlogger = logging.getLogger("sample")\n')
    (folder / package / "plugin.py").write_text(f"{prelude}\n{code}", encoding="utf-8")
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(f"{package}.plugin")
    finally:
        sys.path.remove(str(folder))


async def run(code: str, **names: Any) -> dict[str, Any]:
    """Run a sample that is a piece of a coroutine; the names it had at its end."""
    body = textwrap.indent(code, "    ")
    source = f"async def sample({', '.join(names)}):\n{body}\n    return locals()\n"
    space: dict[str, Any] = {}
    exec(PRELUDE, space)
    exec(compile(source, "<sample>", "exec"), space)
    result: dict[str, Any] = await space["sample"](**names)
    return result
