"""Keys: what is one, whose it is, and how they are made."""

from __future__ import annotations

import posixpath
import re
import unicodedata
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from petalbus.handlers.bucket.errors import Denied
from petalbus.handlers.bucket.names import (
    DOCUMENTED_TEMPLATE,
    TEMPLATE,
    checked_key,
    checked_template,
    make_key,
    names_machine,
    names_other,
)

from .hostile import HOSTILE

PREFIX = "flight_logs/"
OTHERS = ("machine-10", "machine-2", "other")


def allowed(key: object, machine: str = "machine-1") -> bool:
    """Whether a key passes without the store being asked."""
    try:
        checked_key(key)  # type: ignore[arg-type]  # what comes from outside is anything
    except Denied:
        return False
    return not names_other(str(key), machine, PREFIX)


@pytest.mark.parametrize("key", [key for key in HOSTILE if not key.startswith("fleet/")], ids=ascii)
def test_hostile_keys_are_refused_without_asking_the_store(key: str) -> None:
    """S-247, S-272, C-23."""
    assert not allowed(key)


@pytest.mark.parametrize("key", ["", None, b"machine-1/a.ulg", 7, "machine-1/\udc80.ulg"], ids=ascii)
def test_what_is_no_text_is_no_key(key: object) -> None:
    """S-272."""
    assert not allowed(key)


@pytest.mark.parametrize(
    "key",
    [
        "machine-1/flight-logs/20260101_000000_1_flight.ulg",
        "machine-1/record-7/ulog/log_5.ulg",
        "machine-1/record-7/rosbag/log 5 (1).bag",
        "flight_logs/machine-1/20250727_143022_mission_log.ulg",
        "deleted/machine-1/record-7/ulog/log_5.ulg",
        "machine-1/50%.ulg",
        "machine-1/a..b.ulg",
        "machine-1/.hidden.ulg",
        "machine-1/vol-\u00e9t\u00e9-\u98db\u884c.ulg",
    ],
)
def test_our_own_keys_are_ours(key: str) -> None:
    """S-252, S-259, C-20: the machine is the first part, or follows the upload prefix or ``deleted/``."""
    assert allowed(key)
    assert names_machine(key, "machine-1", PREFIX)


@pytest.mark.parametrize(
    "key",
    [
        "flights/2026/01/07/flight_001.ulg",
        "uploads/temp/file.ulg",
        "archive/2026/file.ulg",
        "custom/path/myfile.ulg",
        "deleted/flights/2026/a.ulg",
        "2026/01/a.ulg",
        "flight_logs/a.ulg",
        "a.ulg",
    ],
)
@pytest.mark.parametrize("machine", ["machine-1", "m1", "drone-001", "0f" * 16, "flights-7", "12"])
def test_free_keys_are_anybodys(key: str, machine: str) -> None:
    """S-065, S-070, S-071, C-20: until somebody has stored something there."""
    assert allowed(key, machine)
    assert not names_machine(key, machine, PREFIX)


def test_an_id_is_known_by_its_shape() -> None:
    """S-247: long ones in hexadecimal, too, where no two have a part in common."""
    assert names_other("a3" * 16 + "/x.ulg", "0f" * 16, PREFIX)
    assert names_other("1B4E28BA-2FA1-11D2-883F-0016D3CCA427/x.ulg", "6ba7b810-9dad-11d1-80b4-00c04fd430c8", PREFIX)
    assert names_other("m2/x.ulg", "m1", PREFIX)


def test_templates() -> None:
    """S-252, S-259, C-20: the usual one, the documented one, one's own; what cannot be one is told at once."""
    usual = make_key(TEMPLATE, machine="m1", name="a.ulg", prefix=PREFIX)
    assert re.fullmatch(r"m1/flight-logs/[0-9]{8}_[0-9]{6}_[0-9a-f-]{36}_a\.ulg", usual)
    documented = make_key(DOCUMENTED_TEMPLATE, machine="drone-001", name="mission_log.ulg", prefix=PREFIX)
    assert re.fullmatch(r"flight_logs/drone-001/[0-9]{8}_[0-9]{6}_mission_log\.ulg", documented)
    assert make_key(DOCUMENTED_TEMPLATE, machine="m1", name="a.ulg", prefix="").startswith("m1/2")
    own = checked_template("{machine}/{uuid}/ulog/{name}")
    assert names_machine(make_key(own, machine="m1", name="a.ulg", prefix=PREFIX), "m1", PREFIX)
    for wrong, says in (
        ("{machine}/{name", "cannot be read"),
        ("{machine}/{day}_{name}_{uuid}", "'day'"),
        ("{machine.__class__}/{name}_{uuid}", "__class__"),
        ("{machine}/{name}", "replaces another"),
        ("{machine}/{stamp}", "needs {name}"),
    ):
        with pytest.raises(ValueError, match=re.escape(says)):
            checked_template(wrong)
    for name in ("../../machine-10/a.ulg", "a/../../../m2/x.ulg", "a\nb.ulg", "%2e%2e%2fa.ulg"):
        with pytest.raises(Denied):
            make_key(TEMPLATE, machine="m1", name=name, prefix=PREFIX)


PIECES = some.sampled_from(
    [
        *OTHERS, "machine-1", "Machine-1", "machine", "flight_logs", "deleted", "a.ulg", "x", "-1", "10", "0",
        ".", "..", "...", "/", "//", "\\", " ", "+", ";", "%", "%2e", "%2E", "%2f", "%5c", "%25", "%252e", "%00", "%20",
        "\uff0e", "\uff0f", "\u2025", "\u2024", "\u2215", "\u2044", "\u200b", "\u00ad", "\u0301", "\uff05", "2e", "2f",
        "\uff4d", "\u0131", "\x00", "\n", "\u2100", "\ufe52",
    ]
)  # fmt: skip
STEPS = {
    "decode": unquote,
    "decode plus": lambda key: unquote(key.replace("+", " ")),
    "NFC": lambda key: unicodedata.normalize("NFC", key),
    "NFKC": lambda key: unicodedata.normalize("NFKC", key),
    "NFKD": lambda key: unicodedata.normalize("NFKD", key),
    "case": str.casefold,
    "backslash": lambda key: key.replace("\\", "/"),
    "path": lambda key: posixpath.normpath(key).lstrip("/"),
    "slashes": lambda key: re.sub("/+", "/", key).lstrip("/"),
    "ends": lambda key: "/".join(part.strip(" .") or part for part in key.split("/")),
    "blanks": lambda key: "/".join(part.strip() for part in key.split("/")),
    "parameters": lambda key: "/".join(part.partition(";")[0] for part in key.split("/")),
    "unseen": lambda key: "".join(sign for sign in key if unicodedata.category(sign) not in ("Cf", "Cc", "Mn")),
    "zero": lambda key: key.partition("\x00")[0],
    "slash-like": lambda key: key.replace("\u2215", "/").replace("\u2044", "/"),
}


@settings(max_examples=1000, deadline=None)
@given(
    some.lists(PIECES, min_size=1, max_size=9).map("".join),
    some.booleans(),
    some.lists(some.sampled_from(sorted(STEPS)), max_size=8),
)
def test_no_server_reads_a_key_of_ours_as_another_machines(tail: str, ours: bool, steps: list[str]) -> None:  # drawn
    """S-247, S-272: whatever it normalises, in whichever order, a key that passes stays where it says that it is."""
    key = f"machine-1/{tail}" if ours else tail
    if not allowed(key):
        return
    was_ours = names_machine(key, "machine-1", PREFIX)
    seen = key
    for step in steps:
        seen = STEPS[step](seen)
        if was_ours:
            assert names_machine(seen, "machine-1", PREFIX), (key, step, seen)
        for other in OTHERS[:2]:
            assert not names_machine(seen, other, PREFIX), (key, step, seen)
