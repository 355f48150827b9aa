"""The tour of the house names what is there: files, scripts, keys, and the window's value."""

from __future__ import annotations

import re

from petalbus.daemon.bus.keys import Keys
from petalbus.daemon.bus.messages import Known
from petalbus.daemon.services.adoption import short_windows
from petalbus.daemon.services.janitor import boot_keys, fenced_before
from petalbus.daemon.services.plain_inward import cursors_key
from petalbus.schemas.vocabulary import Status

from .pages import DOCS, prose, table
from support.procs import ROOT

PAGE = DOCS / "architecture.md"


def test_every_file_that_the_tour_names_is_there() -> None:
    named = set(re.findall(r"`((?:daemon|schemas|handlers|petals|src|tests|docs)/[\w./]*)`", prose(PAGE)))
    assert len(named) > 40
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_every_file_of_the_bus_core_is_on_the_tour() -> None:
    """But for helpers that explain themselves."""
    helpers = {"__init__", "durability", "errors", "hiding", "keys", "options", "ratelimit", "scripts", "url"}
    files = {path.stem for path in (ROOT / "daemon" / "bus").glob("*.py")} - helpers
    assert files - set(re.findall(r"daemon/bus/(\w+)\.py", prose(PAGE))) == set()


def test_every_script_is_explained() -> None:
    there = {path.stem for path in (ROOT / "daemon" / "bus" / "lua").glob("*.lua")}
    assert {row[0].strip("`") for row in table(PAGE, "script")} == there


def test_every_key_is_explained() -> None:
    keys = Keys("b")
    single = {value for name, value in vars(keys).items() if name not in ("bus", "prefix")}
    more = {*short_windows(keys), *boot_keys(keys), fenced_before(keys), cursors_key(keys)}
    named = {keys.inbox("<app>", 1).replace("inbox:1", "inbox:<1..4>"), keys.replies("<app>"), keys.control("<app>")}
    named |= {keys.topic("<name>"), keys.form("<topic>"), keys.dead("<app>"), keys.status("<app>")}
    written = {name for row in table(PAGE, "key") for name in re.findall(r"`([^`]+)`", row[0])}
    assert written == {key.removeprefix(keys.prefix) for key in single | more | named}


def test_the_example_of_the_windows_value_is_one() -> None:
    (text,) = re.findall(r"^<state>.* (\S+)$", PAGE.read_text(), re.MULTILINE)
    known = Known.parse(text.encode())
    assert (known.state, known.claim, known.reply[:1]) == (Status.COMPLETED, ("2", "vehicle", "gcs"), "1")


def test_every_state_letter_is_explained() -> None:
    letters = {letter for row in table(PAGE, "state") for letter in re.findall(r"`(\w)`", row[0])}
    assert {Known.parse(f"{letter}1-0|2|a|b".encode()).state for letter in letters} == {
        status for status in Status if status is not Status.UNKNOWN
    }
