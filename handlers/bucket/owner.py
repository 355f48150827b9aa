"""Whose an object is: each machine sees, changes and overwrites only its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from petalbus.handlers.bucket.errors import Denied, NotThere
from petalbus.handlers.bucket.names import checked_key, first_part, names_machine, names_other
from petalbus.handlers.bucket.store import MAX_LISTED, Occupied, Store, Taken

T = TypeVar("T")

OWNER: Final = "machine-id"
"""Metadata of an object: the machine that stored it."""

STORED_AT: Final = "upload-timestamp"
"""Metadata of an object: when, which also tells one upload from the next."""

UPLOAD: Final = "upload-id"
"""Metadata of an object whose key was made and may be made again: which upload stored it."""

_HEADS_AT_ONCE: Final = 8


@dataclass(frozen=True, slots=True)
class Owner:
    """One machine's view of a store. ``prefix``: the upload prefix."""

    store: Store
    machine: str
    prefix: str

    def require_not_others(self, key: str) -> None:
        """What a key says by itself. Raises Denied where that is another machine, or it is no plain key."""
        if not names_machine(checked_key(key), self.machine, self.prefix):
            self._require_not_others(key)

    def names(self, key: str) -> bool:
        """Whether a key says by itself that it is this machine's."""
        return names_machine(key, self.machine, self.prefix)

    async def ours(self, key: str) -> dict[str, Any]:
        """The head of an object that is ours. Raises Denied, NotThere."""
        told = None
        if not names_machine(checked_key(key), self.machine, self.prefix):
            self._require_not_others(key)
            try:
                told = await self.store.head(key)
            except NotThere:
                raise Denied(f"Access denied: {key!r} is not of this machine") from None
            if told.get("Metadata", {}).get(OWNER) != self.machine:
                raise Denied(f"Access denied: {key!r} is not of this machine")
        return told if told is not None else await self.store.head(key)

    async def free_or_ours(self, key: str) -> None:
        """Nothing of another machine is ever overwritten. Raises Denied."""
        if names_machine(checked_key(key), self.machine, self.prefix):
            return
        self._require_not_others(key)
        try:
            told = await self.store.head(key)
        except NotThere:
            await self._require_no_machine(key)
            return
        self.require_ours(key, told)

    async def seen(self, key: str) -> dict[str, Any] | None:
        """The head of an object; None where there is none. Raises Denied.

        A store that does not let us list answers 403 for what is not there: below this machine's own name that is
        nothing, too, and what is stored there then is stored as new or compared afterwards.
        """
        try:
            return await self.store.head(key)
        except NotThere:
            return None
        except Denied as error:
            if error.passes or not names_machine(key, self.machine, self.prefix):
                raise
            return None

    async def is_new(self, key: str, upload: str | None = None) -> bool:
        """``free_or_ours`` once more, right before an object is stored: whether nothing is there. Raises Denied.

        False for keys that name this machine: others store nothing there, and what is there may be replaced. But not
        where the key was made for the upload of this id: raises Occupied where another one is there.
        """
        if upload is None and names_machine(checked_key(key), self.machine, self.prefix):
            return False
        if (told := await self.seen(key)) is None:
            return True
        if upload is not None and told.get("Metadata", {}).get(UPLOAD) != upload:
            raise Occupied(f"another log is stored as {key} already")
        self.require_ours(key, told)
        return False

    async def require_unused(self, key: str, upload: str) -> None:
        """``free_or_ours`` for a key that was made for the upload of this id. Raises Occupied, Denied."""
        self.require_not_others(key)
        if await self.is_new(key, upload) and not self.names(key):
            await self._require_no_machine(key)

    def require_ours(self, key: str, told: Mapping[str, Any]) -> None:
        """Raises Denied where an object's head says that another machine stored it."""
        if not names_machine(key, self.machine, self.prefix) and told.get("Metadata", {}).get(OWNER) != self.machine:
            raise Denied(f"Access denied: {key!r} is of another machine")

    async def storing(self, key: str, store: Callable[[bool], Awaitable[T]], upload: str | None = None) -> T:
        """Store an object, told whether it must be new. Raises Denied where another machine was faster.

        ``upload``: see ``is_new``; raises Occupied.
        """
        try:
            return await store(await self.is_new(key, upload))
        except Occupied:
            raise
        except Taken:  # by another machine; or by a request of ours whose answer was lost
            new = await self.is_new(key, upload)
        try:
            return await store(new)
        except Taken as error:
            if upload is None:
                raise
            raise Occupied(str(error)) from error  # something is there, and we are not let see whose it is

    async def is_ours(self, key: str) -> bool:
        """Whether an object is there and ours. One that the store does not let us see is not."""
        if names_machine(key, self.machine, self.prefix):
            return True
        if names_other(key, self.machine, self.prefix):
            return False
        try:
            # the store has just listed it for us: a refusal is about this object, not about the credentials
            told = await self.store.head(key, trusted=True)
        except NotThere:
            return False
        except Denied as error:
            if error.passes:
                raise
            return False
        return bool(told.get("Metadata", {}).get(OWNER) == self.machine)

    async def listed(self, prefix: str, most: int) -> tuple[list[dict[str, Any]], bool]:
        """Up to ``most`` objects of ours below a prefix, and whether there are more. Raises Denied, BucketError."""
        self._require_not_others(prefix)
        mine = names_machine(f"{prefix}x", self.machine, self.prefix)
        found = await self.store.list(prefix, most=most + 1 if mine else MAX_LISTED)
        ours: list[dict[str, Any]] = []
        for at in range(0, len(found), _HEADS_AT_ONCE):
            some = found[at : at + _HEADS_AT_ONCE]
            keep = await asyncio.gather(*(self.is_ours(one["Key"]) for one in some))
            ours += [one for one, is_ours in zip(some, keep, strict=True) if is_ours]
            if len(ours) > most:
                break
        return ours[:most], len(ours) > most or len(found) >= MAX_LISTED

    def _require_not_others(self, key: str) -> None:
        if names_other(key, self.machine, self.prefix):
            raise Denied(f"Access denied: {key!r} is of another machine")

    async def _require_no_machine(self, key: str) -> None:
        """Nothing new below another machine's id: it is one when something below it says that it stored it.

        What the store does not let us see says nothing.
        """
        first = first_part(key)
        if first is None or first == self.machine:
            return
        try:
            found = await self.store.list(f"{first}/", most=1)
            told = await self.store.head(found[0]["Key"], trusted=True) if found else {}
        except NotThere:
            return
        except Denied as error:
            if error.passes:
                raise
            return
        if told.get("Metadata", {}).get(OWNER) == first:
            raise Denied(f"Access denied: {key!r} is below another machine's id")
