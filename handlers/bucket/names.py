"""Keys: how a log is named, and whose a key is.

A key belongs to a machine when the machine's id is its first part, or follows the upload prefix or ``deleted/``. Other
keys (``flights/2026/01/07/a.ulg``) belong to whoever stored them: the object's metadata says who that was.
"""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime
from typing import Final
from urllib.parse import unquote

from petalbus.handlers.bucket.errors import Denied

MAX_KEY_BYTES: Final = 1024
TEMPLATE: Final = "{machine}/flight-logs/{stamp}_{uuid}_{name}"
"""The usual key. Members: machine, stamp (UTC, YYYYMMDD_HHMMSS), uuid, name, prefix (the upload prefix)."""

DOCUMENTED_TEMPLATE: Final = "{prefix}/{machine}/{stamp}_{name}"
DELETED: Final = "deleted"

_FORBIDDEN: Final = re.compile(r"[\x00-\x1f\x7f\\]")


def make_key(template: str, *, machine: str, name: str, prefix: str) -> str:
    """A new key for a file. Raises Denied when what comes out is no fit key."""
    stamp = datetime.now(UTC).strftime("%Y%m%d_%H%M%S")
    return checked_key(
        template.format(machine=machine, stamp=stamp, uuid=uuid.uuid4(), name=name, prefix=prefix.strip("/"))
    )


def checked_key(key: str) -> str:
    """The key as it is, when nothing in it can mean another place than it says.

    Raises Denied for ``..``, ``.``, empty parts, control characters, and all of these in percent encoding.
    """
    if not key or len(key.encode()) > MAX_KEY_BYTES:
        raise Denied(f"Access denied: a key has 1 to {MAX_KEY_BYTES} bytes")
    seen = key
    for _ in range(4):
        if _FORBIDDEN.search(seen) or any(part in ("", ".", "..") for part in seen.split("/")):
            raise Denied(f"Access denied: {key!r} is not a plain key")
        plain = unquote(seen)
        if plain == seen:
            return key
        seen = plain
    raise Denied(f"Access denied: {key!r} is encoded too often")


def checked_prefix(prefix: str) -> str:
    """A prefix for listing: nothing, or the beginning of a key. Raises Denied as ``checked_key``."""
    if prefix:
        checked_key(prefix.removesuffix("/"))
    return prefix


def names_machine(key: str, machine: str, upload_prefix: str) -> bool:
    """Whether a key says by itself that it is the machine's."""
    parts = key.split("/")
    before = upload_prefix.strip("/").split("/")
    starts = [[], before, [DELETED], [DELETED, *before]]
    return any(len(parts) > len(start) + 1 and parts[: len(start) + 1] == [*start, machine] for start in starts)
