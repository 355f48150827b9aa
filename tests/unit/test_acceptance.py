"""The page of requirements is current, names no test that is not there, and leaves no promise without one."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def acceptance() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("acceptance_script", ROOT / "scripts" / "acceptance.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current() -> None:
    """`python3 scripts/acceptance.py` was run after the last change of a test's name or docstring."""
    script = [sys.executable, str(ROOT / "scripts" / "acceptance.py"), "--check"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_promise_made_so_far_has_a_test(acceptance: ModuleType) -> None:
    """The delivery contract's lines that this version proves each have a test that names them."""
    shown = {one for test in acceptance.found_tests(ROOT) for one in test.ids}
    assert {"I1", "I2", "I3", "I4", "I5", "I6", "I8", "I9", "I10"} <= shown


def test_the_delivery_page_names_only_tests_that_exist(acceptance: ModuleType) -> None:
    """Whatever docs/delivery.md gives as proof can be run."""
    text = (ROOT / "docs" / "delivery.md").read_text(encoding="utf-8")
    files = set(re.findall(r"`(tests/[\w/]+\.py)`", text))
    assert files
    assert not [file for file in files if not (ROOT / file).exists()]
    for number in acceptance.CONTRACT:
        assert f"## {number}" in text


def test_ids_are_found_where_people_write_them(acceptance: ModuleType) -> None:
    """Names, lists, ranges; and nothing that only looks like an id."""
    assert acceptance.ids_in("I2, S-133: again") == {"I2", "S-133"}
    assert acceptance.ids_in("changes none of I1-I3") == {"I1", "I2", "I3"}
    assert acceptance.ids_in("I10") == {"I10"}
    assert acceptance.ids_in("I11 PI2 S-1 XS-123 CI4 I2C") == set()
    assert acceptance.sentence("I2, S-133: what holds.\n\nMore.") == "what holds."
