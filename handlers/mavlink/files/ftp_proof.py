"""Pieces of a file that came, kept to be compared with the file once it is opened again.

PX4 has one session, number 0, for everybody: when somebody else resets it and opens another file, our reads go on and
bring bytes of that one, and nothing in the packets tells. So the pieces that came LAST, in time, are compared: where
these are the file's own, the session was still ours, and what came before them is good, too. Pieces from all over the
file go along, for a session that was taken and given back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from petalbus.handlers.mavlink.files.ftp_talk import Talk
from petalbus.handlers.mavlink.files.ftp_wire import FtpNak, FtpPacket, FtpRefused, Opcode

Piece = tuple[int, bytes]
"""Where it begins in the file, and what it is."""

MOST_SPREAD: Final = 256
_LATEST: Final = 16
_STRIDE: Final = 64 << 10


class Proof:
    """Keeps the latest 16 pieces, and one of every 64 KiB (of larger stretches where that makes too many). Pure."""

    def __init__(self) -> None:
        self._latest: deque[Piece] = deque(maxlen=_LATEST)
        self._spread: list[Piece] = []
        self._stride = _STRIDE
        self._due = 0

    def note(self, offset: int, data: bytes) -> None:
        """A piece came."""
        self._latest.append((offset, data))
        if offset >= self._due:
            self._spread.append((offset, data))
            if len(self._spread) > MOST_SPREAD:
                del self._spread[1::2]
                self._stride *= 2
            self._due = offset + self._stride

    def pieces(self) -> list[Piece]:
        """What is to be compared, each piece once."""
        return list(dict.fromkeys((*self._spread, *self._latest)))


async def fits(talk: Talk, session: int, pieces: Sequence[Piece], what: str) -> bool:
    """Whether an open file holds these pieces. Raises FtpRefused (also for a session that is lost) and FtpTimeout."""
    same = True
    expected = dict(pieces)
    asked = [FtpPacket(0, Opcode.READ_FILE, session, offset, size=len(data)) for offset, data in expected.items()]

    def take(request: FtpPacket, answer: FtpPacket, sends: int) -> None:
        nonlocal same
        nak = answer.nak
        if nak is not None and nak[0] != FtpNak.END_OF_FILE:
            raise FtpRefused(what, *nak, sends=sends)
        whole = expected[request.offset]
        same = same and nak is None and answer.data != b"" and whole.startswith(answer.data[: len(whole)])

    await talk.ask_all(asked, take, what, window=talk.peer.window)
    return same
