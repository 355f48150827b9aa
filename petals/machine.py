"""Who this machine is: an id that stays the same. Blocks: files are read, and one may be written.

In this order: what was set (``machine_id``, ``PETAL_MACHINE_ID``); the thing's name in ``thing-parameters.json``
without ``Instance-``; the file ``machine-id`` in the data directory. That file is written once, from what the hardware
and the installation say of themselves, and again only when the thing's name says something else.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import uuid
from pathlib import Path
from typing import Final, NamedTuple

FILE_NAME: Final = "machine-id"
VARIABLE: Final = "PETAL_MACHINE_ID"
THING_PREFIX: Final = "Instance-"

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_INTERFACES: Final = Path("/sys/class/net")
_INSTALLATION: Final = Path("/etc/machine-id")

logger = logging.getLogger(__name__)


class MachineId(NamedTuple):
    """The id, and where it is from: ``setting``, ``thing``, ``file`` or ``hardware``."""

    value: str
    source: str


def find_machine_id(directory: Path, *, given: str | None = None, thing_name: str | None = None) -> MachineId:
    """This machine's id. ``directory``: where it is kept. Never fails: without any fact it is random, and kept."""
    if word := machine_id_that_was_set(given):
        return MachineId(word, "setting")
    file = directory / FILE_NAME
    kept = _read(file)
    if thing_name:
        named = thing_name.removeprefix(THING_PREFIX)
        if _ID.fullmatch(named):
            if kept != named:
                if kept is not None:
                    logger.warning("the machine id is %s from now on, as its thing is called; it was %s", named, kept)
                _write(file, named)
            return MachineId(named, "thing")
        logger.error("the thing's name %r gives no machine id: it is ignored", thing_name)
    if kept is not None:
        return MachineId(kept, "file")
    made = _made(_INTERFACES, _INSTALLATION)
    return MachineId(_write(file, made, only_new=True), "hardware")


def machine_id_that_was_set(given: str | None) -> str | None:
    """``given``, else the environment's, when it can be one. Reads no file."""
    word = given or os.environ.get(VARIABLE)
    if not word:
        return None
    if _ID.fullmatch(word):
        return word
    logger.error("%r cannot be a machine id (letters, digits, . _ : -; 128 at most): it is ignored", word)
    return None


def _made(interfaces: Path, installation: Path) -> str:
    """From /etc/machine-id, and the first real interface's address, which tells boards with copied cards apart."""
    facts = [fact for fact in (_hardware_address(interfaces), _word(installation)) if fact]
    if not facts:
        return uuid.uuid4().hex
    return hashlib.sha256("\n".join(["petalbus machine", *facts]).encode()).hexdigest()[:32]


def _hardware_address(interfaces: Path) -> str | None:
    """Of the first interface with a device behind it, cables before radio; not one that was made up."""
    try:
        found = sorted(interfaces.iterdir(), key=lambda one: (not one.name.startswith("e"), one.name))
    except OSError:
        return None
    for interface in found:
        address = _word(interface / "address")
        if (interface / "device").exists() and address and re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", address):
            first = int(address[:2], 16)
            if not first & 0b11 and address != "00:00:00:00:00:00":  # neither of many nor given by software
                return address
    return None


def _word(file: Path) -> str | None:
    try:
        return file.read_text(encoding="ascii").strip().lower() or None
    except (OSError, UnicodeDecodeError):
        return None


def _read(file: Path) -> str | None:
    try:
        word = file.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        logger.warning("%s cannot be read (%s): it is made anew", file, error)
        return None
    if _ID.fullmatch(word):
        return word
    logger.error("%s holds no machine id: it is made anew", file)
    file.with_name(f"{FILE_NAME}.unusable").unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        file.rename(file.with_name(f"{FILE_NAME}.unusable"))
    return None


def _write(file: Path, word: str, *, only_new: bool = False) -> str:
    """Keep it; what is kept then. ``only_new``: what another process has just written stays."""
    unfinished = file.with_name(f".{FILE_NAME}.{os.getpid()}.{uuid.uuid4().hex[:8]}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("w", encoding="ascii") as out:
            out.write(f"{word}\n")
            out.flush()
            os.fsync(out.fileno())
        if only_new:
            try:
                os.link(unfinished, file)
            except FileExistsError:
                return _read(file) or word
        else:
            unfinished.replace(file)
    except OSError as error:
        logger.warning("the machine id %s cannot be kept in %s: %s", word, file, error)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
    return word
