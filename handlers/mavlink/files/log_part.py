"""A flight log on its way into a file: ``<path>.part`` is its beginning, ``<path>.part.json`` of which."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from petalbus.handlers.mavlink.files.log_pieces import PIECE


class PartFile:
    """A log's beginning on disk, and a note which log it is. All methods block."""

    def __init__(self, path: Path) -> None:
        """``path`` is where the whole log shall be."""
        self._path = path
        self._part = path.with_name(path.name + ".part")
        self._note = path.with_name(path.name + ".part.json")

    def begin(self, note: Mapping[str, int]) -> int:
        """How many bytes are there of the log that ``note`` names; what is there of another goes. Raises OSError.

        ``note["size"]`` is the log's size in bytes.
        """
        try:
            known = json.loads(self._note.read_text())
            size = self._part.stat().st_size if known == dict(note) else 0
        except (OSError, ValueError):
            size = 0
        size = min(size, note["size"]) // PIECE * PIECE
        if size == 0:
            self._part.write_bytes(b"")
            self._note.write_text(json.dumps(dict(note)))
        return size

    def write(self, offset: int, data: bytes) -> None:
        """Put a window where it belongs. Raises OSError."""
        with self._part.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def finish(self, size: int) -> None:
        """All is there: give it its name. Raises OSError."""
        with self._part.open("r+b") as file:
            file.truncate(size)
            os.fsync(file.fileno())
        self._part.replace(self._path)
        self._note.unlink(missing_ok=True)
