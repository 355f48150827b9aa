"""Keys: how a log is named, and whose a key is.

A key belongs to a machine when the machine's id is its first part, or follows the upload prefix or ``deleted/``. Other
keys (``flights/2026/01/07/a.ulg``) belong to whoever stored them: the object's metadata says who that was.
"""

from __future__ import annotations

import re
import string
import unicodedata
import uuid
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import unquote

from petalbus.handlers.bucket.errors import Denied

MAX_KEY_BYTES: Final = 1024
TEMPLATE: Final = "{machine}/flight-logs/{stamp}_{uuid}_{name}"
"""The usual key. Members: machine, stamp (UTC, YYYYMMDD_HHMMSS), uuid, name, prefix (the upload prefix)."""

DOCUMENTED_TEMPLATE: Final = "{prefix}/{machine}/{stamp}_{name}"
DELETED: Final = "deleted"

_MEMBERS: Final = frozenset(("machine", "stamp", "uuid", "name", "prefix"))
_UNSEEN: Final = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
"""Categories of characters: control, format (zero width, direction), half of a pair, separators of lines."""

_SLASHES: Final = frozenset("\\\u2044\u2215\u2216\u2571\u27cb\u29f5\u29f8\u29f9\ufe68\uff3c\ufffd")
"""What some systems take for a slash, and the sign for bytes that were no text."""

_ODD_CODE: Final = re.compile(r"%u[0-9a-fA-F]{4}")
_DECODINGS: Final = 4
_APART: Final = 8
_LONG_ID: Final = 8
_TELLING_ID: Final = 4


def checked_template(template: str) -> str:
    """A key template as it is. Raises ValueError where it cannot make keys that differ and are a machine's own."""
    try:
        names = _members(template)
    except ValueError as error:
        raise ValueError(f"the key template {template!r} cannot be read: {error}") from None
    if unknown := sorted(names - _MEMBERS):
        known = ", ".join(sorted(_MEMBERS))
        raise ValueError(f"the key template {template!r} has {unknown[0]!r}; known: {known}")
    if "name" not in names or not names & {"stamp", "uuid"}:
        text = "needs {name}, and {stamp} or {uuid}: else one log replaces another"
        raise ValueError(f"the key template {template!r} {text}")
    return template


def may_repeat(template: str) -> bool:
    """Whether two keys of a template may be the same: of two files of one name, within a second or by a wrong clock."""
    return "uuid" not in _members(template)


def make_key(template: str, *, machine: str, name: str, prefix: str, apart: bool = False) -> str:
    """A new key for a file. Raises Denied when what comes out is no fit key.

    ``apart``: a random text stands between time and name, as the key without it is another log's.
    """
    made_id = uuid.uuid4()
    stamp = datetime.now(UTC).strftime("%Y%m%d_%H%M%S")
    if apart and "stamp" in _members(template):
        stamp = f"{stamp}_{made_id.hex[:_APART]}"
    elif apart:
        name = f"{made_id.hex[:_APART]}_{name}"
    made = template.format(machine=machine, stamp=stamp, uuid=made_id, name=name, prefix=prefix.strip("/"))
    return checked_key(made if prefix.strip("/") else made.removeprefix("/"))


def checked_key(key: str) -> str:
    """The key as it is, when nothing in it can mean another place than it says.

    Raises Denied for ``..``, empty parts, parts that some systems shorten (a dot or a blank at an end), characters
    that nobody sees, slashes of other kinds, and all of these in percent encoding or in another form of Unicode.
    """
    given: Any = key
    if not isinstance(given, str) or not key or len(key) > MAX_KEY_BYTES or _bytes(key) > MAX_KEY_BYTES:
        raise Denied(f"Access denied: a key is a text of 1 to {MAX_KEY_BYTES} bytes")
    seen = key
    for _ in range(_DECODINGS):
        folded = unicodedata.normalize("NFKC", seen)
        # a slash that appears on the way makes one name two
        if not (_is_plain(seen) and _is_plain(folded)) or folded.count("/") != key.count("/"):
            raise Denied(f"Access denied: {key!r} is not a plain key")
        plain = unquote(folded)
        if plain == folded:
            return key
        seen = plain
    raise Denied(f"Access denied: {key!r} is encoded too often")


def checked_prefix(prefix: str) -> str:
    """A prefix for listing: nothing, or the beginning of a key. Raises Denied as ``checked_key``."""
    if prefix:
        checked_key(prefix.removesuffix("/"))
    return prefix


def names_machine(key: str, machine: str, upload_prefix: str) -> bool:
    """Whether a key says by itself that it is the machine's."""
    parts = key.split("/")
    before = _parts(upload_prefix)
    starts = [[], before, [DELETED], [DELETED, *before]]
    return any(len(parts) > len(start) + 1 and parts[: len(start) + 1] == [*start, machine] for start in starts)


def names_other(key: str, machine: str, upload_prefix: str) -> bool:
    """Whether a key says by itself that it is another machine's, or looks like one of ours and is not.

    What follows the upload prefix is a machine. Elsewhere a first part is taken for one when it looks like our own id:
    in another case or script, with other digits, or longer (``machine-10`` where we are ``machine-1``).
    """
    if names_machine(key, machine, upload_prefix):
        return False
    parts = _undeleted(key)
    before = [_folded(part) for part in _parts(upload_prefix)]
    if before and len(parts) > len(before) + 1 and [_folded(part) for part in parts[: len(before)]] == before:
        return True
    return len(parts) > 1 and parts[0] != machine and _looks_like(parts[0], machine)


def first_part(key: str) -> str | None:
    """The part of a key where a machine's id may stand; None where the key has only one part."""
    parts = _undeleted(key)
    return parts[0] if len(parts) > 1 else None


def _members(template: str) -> set[str]:
    """Raises ValueError where it cannot be read."""
    return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}


def _bytes(key: str) -> int:
    return len(key.encode(errors="surrogatepass"))


def _is_plain(text: str) -> bool:
    if _ODD_CODE.search(text) or any(sign in _SLASHES or unicodedata.category(sign) in _UNSEEN for sign in text):
        return False
    return all(_is_plain_part(part) for part in text.split("/"))


def _is_plain_part(part: str) -> bool:
    if part != part.strip() or part.endswith("."):  # some systems drop these: it would be another name
        return False
    # a plus may mean a blank; what follows a semicolon, and accents, may be left out
    bare = "".join(sign for sign in part if unicodedata.category(sign)[0] != "M")
    return bool(bare.partition(";")[0].replace("+", " ").strip(" ."))


def _parts(prefix: str) -> list[str]:
    return [part for part in prefix.split("/") if part]


def _undeleted(key: str) -> list[str]:
    """The parts of a key that follow ``deleted/``."""
    parts = key.split("/")
    while len(parts) > 1 and _folded(parts[0]) == DELETED:
        parts = parts[1:]
    return parts


def _folded(part: str) -> str:
    """Without case, accents and other forms of the same letters, as a careless system may compare it."""
    plain = part
    for _ in range(_DECODINGS):
        plain = unquote(unicodedata.normalize("NFKC", plain))
    spread = unicodedata.normalize("NFKD", plain.partition(";")[0].casefold())
    return "".join(sign for sign in spread if not unicodedata.combining(sign)).strip(" +.")


def _looks_like(part: str, machine: str) -> bool:
    theirs, ours = _folded(part), machine.casefold()
    if _alike(theirs, ours) or (len(ours) >= _TELLING_ID and theirs.startswith(ours)):
        return True
    if any(sign.isalpha() for sign in ours) and _alike(re.sub("[0-9]+", "0", theirs), re.sub("[0-9]+", "0", ours)):
        return True
    return len(ours) >= _LONG_ID and _alike(re.sub("[0-9a-f]", "0", theirs), re.sub("[0-9a-f]", "0", ours))


def _alike(theirs: str, ours: str) -> bool:
    """Equal; a sign that is not ASCII may stand for any: ids have none, so it is there to look like one."""
    return len(theirs) == len(ours) and all(a == b or not a.isascii() for a, b in zip(theirs, ours, strict=True))
