"""Names on the bus: the app that stores flight logs, the types that it takes, and where it keeps its notes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from petalbus.daemon.bus.keys import Keys

APP: Final = "bucket"
UPLOAD: Final = "bucket.upload"
"""Store a file: path, and optionally s3_key, filename, template, prefix, metadata, documented_magic."""

UPLOADS: Final = "bucket.uploads"
"""List them."""

PAUSE: Final = "bucket.pause"
RESUME: Final = "bucket.resume"
"""Of one (``id``), or of all. Cancelling is the bus's own: ``bus.cancel(id)``."""


def notes_key(keys: Keys) -> str:
    """The hash of unfinished uploads: record id -> JSON."""
    return f"{keys.prefix}bucket:uploads"


def parts_key(keys: Keys, upload: str) -> str:
    """The hash of the parts of one upload that the store has taken: number -> ETag, MD5."""
    return f"{keys.prefix}bucket:parts:{upload}"


def state_key(keys: Keys) -> str:
    """The hash of what concerns all uploads: ``paused``."""
    return f"{keys.prefix}bucket:state"
