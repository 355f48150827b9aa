"""The folder through which files pass between the vehicle's handler and who asked for them, on one machine.

A file that came is left there under a name made of what it is, so that a transfer that broke off goes on where it was;
who asked moves it away. What nobody has touched for a day goes.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from pathlib import Path
from typing import Final

from petalbus.handlers.mavlink.errors import MavlinkError

_KEEP_S: Final = 86_400.0


class TransferRefused(MavlinkError):
    """A file cannot pass: there is no folder for it, or it is not in it."""

    code = "TRANSFER_REFUSED"


class Transfers:
    """``folder``: where files pass; None: they cannot."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    async def place(self, kind: str, what: str) -> Path:
        """Where the file ``what`` of a ``kind`` is put. Raises TransferRefused."""
        folder = self._there()
        await asyncio.to_thread(_prepare, folder)
        return folder / f"{kind}-{hashlib.sha256(what.encode()).hexdigest()[:24]}"

    async def given(self, name: str) -> Path:
        """The file that somebody put into the folder under ``name``. Raises TransferRefused."""
        folder = self._there()
        path = folder / name
        if "/" in name or name.startswith(".") or not await asyncio.to_thread(_is_file, path):
            raise TransferRefused(f"{name!r} is no file in {folder}: copy what shall be sent there first")
        return path

    def _there(self) -> Path:
        if self._folder is None:
            raise TransferRefused("this handler has no folder for files: it was started without one")
        return self._folder


def _prepare(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    old = time.time() - _KEEP_S
    for path in folder.iterdir():
        try:
            if path.is_file() and path.stat().st_mtime < old:
                path.unlink()
        except FileNotFoundError:
            continue


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()
