"""Reads ``thing-parameters.json``, the file in which provisioning says whose machine this is. Blocks."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

MAX_FILE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Said:
    """What the file says. ``problem``: why it cannot be understood; then the rest is empty."""

    organization_id: str | None = None
    thing_name: str | None = None
    retrieved_at: str | None = None
    problem: str = ""


def read_thing(path: Path, seen: object) -> tuple[object, Said | None]:
    """A mark of the file as it is, and what it says; None when it is as it was when ``seen`` was its mark."""
    try:
        # Without waiting: a pipe of that name would wait for its writer.
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return "no file", None if seen == "no file" else Said()
    except OSError as error:
        problem = f"it cannot be read: {error}"
        return problem, None if seen == problem else Said(problem=problem)
    try:
        found = os.fstat(file)
        mark = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        if mark == seen:
            return mark, None
        if not stat.S_ISREG(found.st_mode):
            return mark, Said(problem="it is no regular file")
        if found.st_size > MAX_FILE_BYTES:
            return mark, Said(problem=f"it has more than {MAX_FILE_BYTES} bytes")
        return mark, _understood(os.read(file, MAX_FILE_BYTES))
    except OSError as error:
        return None, Said(problem=f"it cannot be read: {error}")
    finally:
        os.close(file)


def _understood(content: bytes) -> Said:
    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        return Said(problem=f"it is no JSON (a writer may be at work): {error}")
    if not isinstance(document, dict):
        return Said(problem="it is no JSON object")
    thing, state = _part(document, "thing"), _part(document, "shadow", "state")
    places = (_part(thing, "lastReported"), _part(state, "reported"), _part(state, "desired"))
    found = [word for place in places if (word := _word(place.get("organizationId")))]
    return Said(found[0] if found else None, _word(thing.get("thingName")), _word(thing.get("retrievedAt")))


def _part(document: dict[str, Any], *names: str) -> dict[str, Any]:
    for name in names:
        inner = document.get(name)
        document = inner if isinstance(inner, dict) else {}
    return document


def _word(value: Any) -> str | None:
    return (value.strip() or None) if isinstance(value, str) else None
