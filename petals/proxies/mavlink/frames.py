"""A frame on its way to a handler: decoded when the first one looks, once for all of them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from petalbus.handlers.mavlink.wire.framing import Frame

if TYPE_CHECKING:
    from petalbus.daemon.bus.tail import Entries
    from petalbus.handlers.mavlink.wire.dialect import Dialect
    from petalbus.petals.proxies.mavlink.handlers import Handlers

log = logging.getLogger(__name__)

_KIND: Final = b"k"
_DATA: Final = b"d"


class IncomingFrame:
    """One frame of ``mavlink.rx``."""

    __slots__ = ("_decode", "_message", "_raw", "kind")

    def __init__(self, kind: str, raw: bytes, decode: Any) -> None:
        """``decode``: pymavlink's decode of the link's dialect."""
        self.kind = kind
        self._raw = raw
        self._decode = decode
        self._message: Any = None

    @property
    def fingerprint(self) -> tuple[tuple[int, int, int], bytes]:
        """Message, sender and payload; the sequence number does not count."""
        frame = Frame(self._raw, int(self.kind))
        return (frame.msgid, frame.sysid, frame.compid), frame.payload

    def message(self) -> Any:
        """The pymavlink message. Raises its MAVError for a frame that does not fit the dialect."""
        if self._message is None:
            self._message = self._decode(bytearray(self._raw))
        return self._message


class FrameReader:
    """Picks from the topic's entries what handlers want. A frame that nobody wants costs one look-up."""

    def __init__(self, handlers: Handlers, dialect: Dialect) -> None:
        self.foreign = 0
        """Entries that are no frames."""
        self._handlers = handlers
        self._decode = dialect.module.MAVLink(None).decode

    def take(self, entries: Entries) -> None:
        """Called with what came in."""
        handlers = self._handlers
        by_kind, everything = handlers.by_kind, handlers.everything
        for _, fields in entries:
            if fields[0] == _KIND and len(fields) == 6 and fields[4] == _DATA:
                kind, raw = fields[1].decode(), fields[5]
            else:
                values = dict(zip(fields[::2], fields[1::2], strict=False))
                if _KIND not in values or _DATA not in values:
                    self.foreign += 1
                    continue
                kind, raw = values[_KIND].decode("utf-8", "replace"), values[_DATA]
            wanted = by_kind.get(kind, everything)
            if wanted:
                incoming = IncomingFrame(kind, raw, self._decode)
                for handler in wanted:
                    handler.put(incoming)
