"""ArduPilot's parameter file, made when somebody reads it."""

from __future__ import annotations

from petalbus.handlers.mavlink.params.pack import PARAM_FILE, PackedParam, encode_param_pack
from petalbus.handlers.mavlink.params.values import ParamType, decode_value
from petalbus.handlers.mavlink.sim.params import ParamStore


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
