"""What is noted of unfinished uploads, so that a killed daemon goes on where it was.

The notes are on the bus, beside the records that they belong to: a crash or a power cut cannot keep the one and lose
the other, and there is no second store to keep in step.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from petalbus.handlers.bucket import words

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus


@dataclass(slots=True)
class Note:
    """What is known of one upload. ``over``: it has ended, and only its parts are left to be given up.

    ``beginning``: the store was asked to begin an upload, and has not answered; ``strays``: that has happened before.
    """

    path: str = ""
    key: str | None = None
    machine: str | None = None
    stamp: tuple[int, int] | None = None
    upload: str | None = None
    part_bytes: int = 0
    paused: bool = False
    over: bool = False
    beginning: bool = False
    strays: bool = False
    attempts: int = 0

    @classmethod
    def read(cls, text: bytes) -> Note:
        """From its stored form; one that cannot be read is as good as none."""
        try:
            told = json.loads(text)
            known = {one.name: told[one.name] for one in fields(cls) if one.name in told}
            stamp = known.get("stamp")
            known["stamp"] = (int(stamp[0]), int(stamp[1])) if stamp else None
            return cls(**known)
        except (ValueError, TypeError, KeyError, IndexError):
            return cls()

    def text(self) -> str:
        """Its stored form."""
        return json.dumps(asdict(self), separators=(",", ":"))


class Notes:
    """All of them. Every write is confirmed by the server before it returns. Raises BusError, ServerError."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def all(self) -> dict[str, Note]:
        """By record id."""
        flat = await self._bus.ask("HGETALL", words.notes_key(self._bus.keys))
        return {flat[at].decode(): Note.read(flat[at + 1]) for at in range(0, len(flat), 2)}

    async def get(self, upload: str) -> Note:
        """One; a new one where there is none."""
        text = await self._bus.ask("HGET", words.notes_key(self._bus.keys), upload)
        return Note.read(text) if text else Note()

    async def save(self, upload: str, note: Note) -> None:
        """Store one."""
        await self._bus.ask("HSET", words.notes_key(self._bus.keys), upload, note.text())

    async def forget(self, upload: str) -> None:
        """Take one away, with its parts."""
        await self._bus.ask("DEL", words.parts_key(self._bus.keys, upload))
        await self._bus.ask("HDEL", words.notes_key(self._bus.keys), upload)

    async def part(self, upload: str, number: int, etag: str, md5: str) -> None:
        """Note that the store has a part."""
        await self._bus.ask("HSET", words.parts_key(self._bus.keys, upload), number, f"{etag} {md5}")

    async def parts(self, upload: str) -> Mapping[int, tuple[str, str]]:
        """ETag and MD5 of the parts that the store has, by number."""
        flat = await self._bus.ask("HGETALL", words.parts_key(self._bus.keys, upload))
        found: dict[int, tuple[str, str]] = {}
        for at in range(0, len(flat), 2):
            etag, _, md5 = flat[at + 1].decode().partition(" ")
            found[int(flat[at])] = (etag, md5)
        return found

    async def no_parts(self, upload: str) -> None:
        """Forget the parts: the upload begins anew."""
        await self._bus.ask("DEL", words.parts_key(self._bus.keys, upload))

    async def all_paused(self) -> bool:
        """Whether everything is paused."""
        return bool(await self._bus.ask("HGET", words.state_key(self._bus.keys), "paused") == b"1")

    async def pause_all(self, *, paused: bool) -> None:
        """Note whether everything is paused."""
        await self._bus.ask("HSET", words.state_key(self._bus.keys), "paused", int(paused))


class Noted:
    """Progress (see ``transfer``) of one upload, in its note."""

    def __init__(self, notes: Notes, upload: str, note: Note) -> None:
        self._notes = notes
        self._id = upload
        self._note = note

    @property
    def upload(self) -> str | None:
        """The store's id of it."""
        return self._note.upload

    @property
    def part_bytes(self) -> int:
        """Size of its parts."""
        return self._note.part_bytes

    async def beginning(self) -> None:
        """See Progress."""
        self._note.strays = self._note.strays or self._note.beginning
        self._note.beginning = True
        await self._notes.save(self._id, self._note)

    async def begun(self, upload: str | None, part_bytes: int) -> None:
        """See Progress."""
        self._note.beginning = self._note.beginning and upload is None
        self._note.upload, self._note.part_bytes = upload, part_bytes
        await self._notes.no_parts(self._id)
        await self._notes.save(self._id, self._note)

    async def part(self, number: int, etag: str, md5: str) -> None:
        """See Progress."""
        await self._notes.part(self._id, number, etag, md5)

    async def parts(self) -> Mapping[int, tuple[str, str]]:
        """See Progress."""
        return await self._notes.parts(self._id)


def described(upload: str, note: Note) -> dict[str, Any]:
    """An upload of which only the note is there (yet), as a list shows it."""
    size = note.stamp[0] if note.stamp else None
    state = "over" if note.over else "paused" if note.paused else "waiting"
    told = {"id": upload, "file": note.path, "key": note.key, "bytes": 0, "total": size, "rate": 0.0, "state": state}
    return {**told, "priority": None, "attempts": note.attempts, "last_error": None}
