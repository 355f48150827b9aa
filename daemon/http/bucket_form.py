"""The file in an uploaded form, as it comes: nothing but the piece at hand is in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from petalbus.daemon.http.errors import Refused

FIELD: Final = "file"
_MAX_VALUE: Final = 4096
_MAX_FIELDS: Final = 16


class Form:
    """``pieces``: the body. ``await to_file()`` first, then iterate over ``data()``. Both raise Refused with 400, 422.

    ``fields``: texts that stand before the file in the form.
    """

    def __init__(self, pieces: AsyncIterator[bytes], content_type: str) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self._pieces = pieces
        self._ready: list[bytes] = []
        self._head: dict[bytes, bytes] = {}
        self._name = self._value = b""
        self._part: str | None = None
        self._text = b""
        self._in_file = False
        self._ended = False
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary:
            raise Refused(400, "bad_form", "the form cannot be read: its content type names no boundary")
        calls: Any = {name: getattr(self, f"_{name}") for name in _CALLS}
        try:
            self._parser = MultipartParser(boundary, calls)
        except FormParserError as error:
            raise Refused(400, "bad_form", f"the form cannot be read: {error}") from None

    async def to_file(self) -> str:
        """Read up to the file; its name."""
        while self.filename is None:
            if not await self._more():
                raise Refused(422, "no_file", f"the form has no file: it belongs into the field {FIELD!r}")
        return self.filename

    async def data(self) -> AsyncIterator[bytes]:
        """The file's bytes, to the end of the form."""
        while True:
            ready, self._ready = self._ready, []
            for piece in ready:
                yield piece
            if not await self._more():
                return

    async def _more(self) -> bool:
        piece = await anext(self._pieces, None)
        if piece is None:
            if not self._ended:
                raise Refused(400, "bad_form", "the form ends before its end: send it again")
            return bool(self._ready)
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise Refused(400, "bad_form", f"the form cannot be read: {error}") from None
        return True

    # -- called by the parser -----------------------------------------------------------------------------------------

    def _on_part_begin(self) -> None:
        self._head, self._text = {}, b""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        self._head[self._name.lower()] = self._value
        self._name = self._value = b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._head.get(b"content-disposition", b""))
        self._part = options.get(b"name", b"").decode(errors="replace")
        self._in_file = self._part == FIELD
        if self._in_file:
            if self.filename is not None:
                raise Refused(400, "bad_form", "the form has more than one file: send each by itself")
            self.filename = options.get(b"filename", b"").decode(errors="replace")

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._ready.append(data[start:end])
            return
        self._text += data[start:end]
        if len(self._text) > _MAX_VALUE:
            raise Refused(400, "bad_form", f"the field {self._part!r} has more than {_MAX_VALUE} bytes")

    def _on_part_end(self) -> None:
        if not self._in_file:
            if len(self.fields) >= _MAX_FIELDS:
                raise Refused(400, "bad_form", f"the form has more than {_MAX_FIELDS} fields beside the file")
            self.fields[self._part or ""] = self._text.decode(errors="replace")
        self._in_file = False

    def _on_end(self) -> None:
        self._ended = True


_CALLS: Final = (
    "on_part_begin",
    "on_header_field",
    "on_header_value",
    "on_header_end",
    "on_headers_finished",
    "on_part_data",
    "on_part_end",
    "on_end",
)
