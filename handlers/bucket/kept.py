"""Session credentials kept in a file, so that uploads go on after a restart while the token service is away.

The file is for this user alone from the moment that it is made, and there is none when what is in it has ended. It
helps nobody but the program that knows for whom it was fetched: the URL of the service, the bucket and the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import stat
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

MAX_BYTES: Final = 64 * 1024
"""A larger file is none of ours, and larger credentials are not kept."""

_MEMBERS: Final = ("access_key", "secret_key", "token", "expiry_time")

log = logging.getLogger(__name__)


class KeptCredentials:
    """The file. ``bound``: for whom they are, such as URL, bucket and machine; others do not use them.

    While a part of that is None it is not known yet, and nothing is kept or used. Whatever is wrong with the file or
    its disk, the credentials are fetched as if there were no file.
    """

    def __init__(self, path: Path, bound: Callable[[], tuple[str | None, ...]]) -> None:
        self._path = path
        self._part = path.with_name(f"{path.name}.part")
        self._bound = bound
        self._turn = asyncio.Lock()

    async def load(self) -> dict[str, str] | None:
        """What the library signs with, as ``credentials.fetch`` answers it; None where nothing fits."""
        async with self._turn:
            return await asyncio.to_thread(self._load)

    async def save(self, told: dict[str, str]) -> None:
        """Keep what was fetched just now. ``expiry_time``: its end, as the service told it."""
        async with self._turn:
            await asyncio.to_thread(self._save, told)

    async def forget(self, access_key: str | None = None) -> None:
        """Delete those of this access key: the store refuses them. None: whatever is there."""
        async with self._turn:
            await asyncio.to_thread(self._forget, access_key)

    async def tidy(self) -> None:
        """Delete what has ended, and what a killed process has left half written."""
        async with self._turn:
            await asyncio.to_thread(self._tidy)

    # -- in a thread --------------------------------------------------------------------------------------------------

    def _load(self) -> dict[str, str] | None:
        self._tidy()
        kept = self._read()
        if kept is None or kept["digest"] != self._digest(kept):
            return None
        if datetime.now(UTC) < datetime.fromisoformat(kept["fetched"]):
            log.info("kept credentials are not used: this machine's clock stands before the time of their fetching")
            return None
        return {name: kept[name] for name in _MEMBERS}

    def _save(self, told: dict[str, str]) -> None:
        kept = {"fetched": datetime.now(UTC).isoformat(), **{name: told[name] for name in _MEMBERS}}
        digest = self._digest(kept)
        data = json.dumps({**kept, "digest": digest}).encode()
        try:
            self._delete()  # the older ones are of no use any more, whatever comes of these
            if digest is None or len(data) > MAX_BYTES:
                return
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # never readable for others, not even for a moment; and never through a link that somebody has put there
            number = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(number, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self._part.replace(self._path)
        except OSError as error:
            log.info("session credentials are not kept in %s (%s)", self._path, error.strerror or error)
            with contextlib.suppress(OSError):
                self._part.unlink(missing_ok=True)

    def _forget(self, access_key: str | None) -> None:
        kept = self._read()
        if kept is not None and access_key in (None, kept["access_key"]):
            self._try_delete()

    def _tidy(self) -> None:
        kept = self._read()
        if kept is None or datetime.fromisoformat(kept["expiry_time"]) <= datetime.now(UTC):
            self._try_delete()

    def _read(self) -> dict[str, str] | None:
        """The file, where it is ours and whole."""
        try:
            number = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        with os.fdopen(number, "rb") as file:
            found = os.fstat(file.fileno())
            mine = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
            if not mine or found.st_size > MAX_BYTES:
                return None
            try:
                return _checked(json.loads(file.read(MAX_BYTES)))
            except (OSError, ValueError, KeyError, TypeError):
                return None

    def _try_delete(self) -> None:
        try:
            self._delete()
        except OSError as error:
            log.warning("session credentials in %s cannot be deleted (%s)", self._path, error.strerror or error)

    def _delete(self) -> None:
        self._part.unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)

    def _digest(self, kept: Mapping[str, str]) -> str | None:
        """Of all of it and for whom it is: what a failing disk has changed fits as little as what is for others."""
        bound = self._bound()
        if None in bound:
            return None
        whole = [*bound, *(kept[name] for name in ("fetched", *_MEMBERS))]
        return hashlib.sha256(json.dumps(whole).encode()).hexdigest()


def delete_kept(path: Path) -> None:
    """Delete what an earlier run has kept there: it is not wanted any more. Blocks."""
    KeptCredentials(path, lambda: ())._try_delete()


def _checked(kept: Any) -> dict[str, str]:
    """Raises ValueError, KeyError or TypeError where a member is missing or none."""
    told = {name: kept[name] for name in ("digest", "fetched", *_MEMBERS)}
    if not all(isinstance(value, str) and value for value in told.values()):
        raise ValueError("a member is no text")
    for name in ("fetched", "expiry_time"):
        if datetime.fromisoformat(told[name]).tzinfo is None:
            raise ValueError("a time without a zone")
    return told
