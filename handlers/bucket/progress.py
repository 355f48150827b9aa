"""How far an upload is: what a later attempt needs to go on where this one ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Progress(Protocol):
    """What a later attempt needs to go on where this one ended."""

    @property
    def upload(self) -> str | None:
        """The store's id of the upload that has begun."""

    @property
    def part_bytes(self) -> int:
        """Size of its parts."""

    async def beginning(self) -> None:
        """The store is about to begin an upload: from now on it may have one whose id nobody has heard."""

    async def begun(self, upload: str | None, part_bytes: int) -> None:
        """The store has begun an upload (None: it does not know it any more). Stored before the first part is sent."""

    async def part(self, number: int, etag: str, md5: str) -> None:
        """The store has a part."""

    async def parts(self) -> Mapping[int, tuple[str, str]]:
        """ETag and MD5 of those."""


class InMemory:
    """Progress of an upload that nobody resumes."""

    def __init__(self) -> None:
        self.upload: str | None = None
        self.part_bytes = 0

    async def beginning(self) -> None:
        """See Progress."""

    async def begun(self, upload: str | None, part_bytes: int) -> None:
        """See Progress."""
        self.upload, self.part_bytes = upload, part_bytes

    async def part(self, number: int, etag: str, md5: str) -> None:
        """See Progress."""

    async def parts(self) -> Mapping[int, tuple[str, str]]:
        """See Progress."""
        return {}
