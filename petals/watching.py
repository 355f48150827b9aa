"""Tells when a file may have changed: by inotify on the directory that holds it, or that will hold its directory.

What inotify cannot see (a file reached over a link, a network's file system) is left to the caller's own slow look.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import logging
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

_MODIFY, _ATTRIB, _CLOSE_WRITE, _MOVED_FROM, _MOVED_TO = 0x2, 0x4, 0x8, 0x40, 0x80
_CREATE, _DELETE, _DELETE_SELF, _MOVE_SELF = 0x100, 0x200, 0x400, 0x800
_OVERFLOW, _IGNORED, _ONLY_DIRECTORIES = 0x4000, 0x8000, 0x01000000
_NAMES: Final = _CREATE | _DELETE | _MOVED_FROM | _MOVED_TO | _DELETE_SELF | _MOVE_SELF
_CONTENT: Final = _CLOSE_WRITE | _MODIFY | _ATTRIB
_HEAD: Final = struct.Struct("iIII")
_BUFFER: Final = 64 << 10
_REST: Final = 0.1  # seconds between two looks at the queue, however busy the directory is

logger = logging.getLogger(__name__)


class FileWatch:
    """Calls ``changed`` on the loop when ``path`` may have changed, appeared or gone. ``works``: inotify is there."""

    def __init__(self, path: Path, changed: Callable[[], None]) -> None:
        self._path = path
        self._changed = changed
        self._loop: asyncio.AbstractEventLoop | None = None
        self._descriptor = -1
        self._watched: tuple[int, Path] | None = None
        self._rest: asyncio.TimerHandle | None = None

    @property
    def works(self) -> bool:
        """False where the system has no inotify, or none left: then only the caller's own look finds changes."""
        return self._watched is not None

    async def start(self) -> None:
        """Begin to watch. Does not fail."""
        self._loop = asyncio.get_running_loop()
        try:
            self._descriptor = _libc().inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, AttributeError) as error:
            logger.debug("no inotify: %s", error)
        if self._descriptor >= 0:
            self._loop.add_reader(self._descriptor, self._readable)
            await self.follow()

    async def follow(self) -> None:
        """Watch the nearest directory that exists; called again after each change."""
        if self._descriptor >= 0:
            descriptor, before = self._descriptor, self._watched
            self._watched = await asyncio.to_thread(_watch, descriptor, self._path, before)

    def close(self) -> None:
        """Stop. May be called twice."""
        if self._rest is not None:
            self._rest.cancel()
        if self._descriptor >= 0 and self._loop is not None:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
        self._descriptor, self._watched = -1, None

    def _readable(self) -> None:
        assert self._loop is not None
        if self._drain():
            self._changed()
        self._loop.remove_reader(self._descriptor)
        self._rest = self._loop.call_later(_REST, self._listen)

    def _listen(self) -> None:
        if self._descriptor >= 0 and self._loop is not None:
            self._loop.add_reader(self._descriptor, self._readable)

    def _drain(self) -> bool:
        """Read one buffer of events; True when one of them is about the path."""
        try:
            events = os.read(self._descriptor, _BUFFER)
        except (BlockingIOError, InterruptedError):
            return False
        watched = self._watched
        wanted = _next_name(watched[1], self._path) if watched is not None else None
        about, at = False, 0
        while at + _HEAD.size <= len(events):
            descriptor, mask, _cookie, length = _HEAD.unpack_from(events, at)
            name = events[at + _HEAD.size : at + _HEAD.size + length].rstrip(b"\0")
            at += _HEAD.size + length
            if mask & _OVERFLOW or watched is None:
                about = True
            elif descriptor == watched[0]:  # others are of a directory that was watched before
                gone = mask & (_DELETE_SELF | _MOVE_SELF | _IGNORED)
                about = about or bool(gone) or not name or os.fsdecode(name) == wanted
        return about


def _watch(descriptor: int, path: Path, before: tuple[int, Path] | None) -> tuple[int, Path] | None:
    """Watch the nearest directory above ``path``; which watch that is."""
    watched = before
    for _ in range(10):  # directories may come and go meanwhile
        directory = next((one for one in path.parents if one.is_dir()), Path("/"))
        mask = _NAMES | _ONLY_DIRECTORIES | (_CONTENT if directory == path.parent else 0)
        try:
            number = int(_libc().inotify_add_watch(descriptor, os.fsencode(directory), mask))
        except OSError as error:
            logger.debug("inotify does not watch %s: %s", directory, error)
            if not directory.is_dir():
                continue
            return None
        if watched is not None and watched[0] != number:
            with contextlib.suppress(OSError):  # it went with its directory
                _libc().inotify_rm_watch(descriptor, watched[0])
        watched = (number, directory)
        if directory == path.parent or not (directory / str(_next_name(directory, path))).is_dir():
            return watched
    return watched


def _next_name(directory: Path, path: Path) -> str | None:
    """The member of the directory that leads to the path."""
    return path.relative_to(directory).parts[0]


@functools.cache
def _libc() -> Any:
    library = ctypes.CDLL(None, use_errno=True)

    def check(result: int, function: Any, _arguments: Any) -> int:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{function.__name__}: {os.strerror(number)}")
        return result

    for name, arguments in (
        ("inotify_init1", [ctypes.c_int]),
        ("inotify_add_watch", [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32]),
        ("inotify_rm_watch", [ctypes.c_int, ctypes.c_int]),
    ):
        function = getattr(library, name)
        function.argtypes, function.restype, function.errcheck = arguments, ctypes.c_int, check
    return library
