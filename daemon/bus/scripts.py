"""The server-side scripts: the only places where a record is appended, settled or moved."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True, slots=True)
class Script:
    """One Lua script. ``sha`` is what EVALSHA wants."""

    name: str
    text: bytes
    sha: str


@cache
def load(name: str) -> Script:
    """Read a script of this package by its name without ending."""
    text = resources.files("petalbus.daemon.bus").joinpath("lua", f"{name}.lua").read_bytes()
    return Script(name, text, hashlib.sha1(text, usedforsecurity=False).hexdigest())


@cache
def all_scripts() -> tuple[Script, ...]:
    """Every script that a connection loads before it goes live."""
    lua = resources.files("petalbus.daemon.bus").joinpath("lua")
    return tuple(load(file.name.removesuffix(".lua")) for file in lua.iterdir() if file.name.endswith(".lua"))
