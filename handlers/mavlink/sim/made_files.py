"""ArduPilot's files that are made when somebody reads them: its parameters, and what it tells of itself."""

from __future__ import annotations

from typing import Final

from petalbus.handlers.mavlink.params.pack import PARAM_FILE, PackedParam, encode_param_pack
from petalbus.handlers.mavlink.params.values import ParamType, decode_value
from petalbus.handlers.mavlink.sim.params import ParamStore

SYSTEM_FOLDER: Final = "@SYS"
SYSTEM_FILES: Final = ("threads.txt", "tasks.txt", "dma.txt", "memory.txt", "uarts.txt", "timers.txt")
"""In the order in which they are listed."""


def made_file(path: str, store: ParamStore) -> bytes | None:
    """The file's bytes; None for any other path."""
    folder, _, name = path.lstrip("/").partition("/")
    if folder == SYSTEM_FOLDER and name in SYSTEM_FILES:
        return f"{name} of a simulated vehicle\n".encode()
    return param_file(path, store)


def param_file(path: str, store: ParamStore) -> bytes | None:
    """The file's bytes; None for any other path."""
    if path.partition("?")[0] != PARAM_FILE:
        return None
    entries = [store.entry(name, index=0) for name in sorted(store.names)]
    return encode_param_pack(
        [
            PackedParam(one.name, decode_value(one.raw, one.param_type, store.encoding), ParamType(one.param_type))
            for one in entries
        ]
    )
