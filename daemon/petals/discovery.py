"""Finds petals and loads their classes. Everything here blocks: it runs in a thread."""

from __future__ import annotations

import importlib
import inspect
import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Final

from petalbus.daemon.petals.errors import LoadFailed
from petalbus.petals.base import Petal

GROUP: Final = "petal.plugins"
"""The entry points of petals."""

PATHS: Final = "setting petals_paths"
"""The origin of petals whose classes a setting names."""

_OURS: Final = "petalbus"


@dataclass(frozen=True, slots=True)
class Found:
    """A petal that was found, not loaded yet. ``target``: ``module:Class``. ``origin``: where it was found."""

    name: str
    target: str
    origin: str
    shipped: bool = False

    @property
    def module(self) -> str:
        """The module's name."""
        return self.target.partition(":")[0]


def find(paths: Iterable[str] = (), named: Mapping[str, str] | None = None) -> dict[str, Found]:
    """Petals by the names under which they are found: entry points, then ``proxies.yaml``, then ``module:Class`` paths.

    What is named later wins: an installation may point a name elsewhere.
    """
    importlib.invalidate_caches()
    found: dict[str, Found] = {}
    for point in metadata.entry_points(group=GROUP):
        package = point.dist.name if point.dist is not None else "?"
        found[point.name] = Found(point.name, point.value, f"package {package}", shipped=package == _OURS)
    for name, target in (named or {}).items():
        found[name] = Found(name, target, "proxies.yaml")
    for path in paths:
        module, _, name = path.strip().rpartition(":")
        if not name or name in found:
            name = f"{module}.{name}"
        found[name] = Found(name, path.strip(), PATHS)
    return found


def load(found: Found) -> type[Petal]:
    """Import a petal's class. Raises LoadFailed with what went wrong."""
    module_name, separator, attributes = found.target.partition(":")
    if not separator or not module_name or not attributes:
        raise LoadFailed(f"{found.target!r} ({found.origin}) is not module:Class")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")  # a petal's own deprecations must not keep it from starting
            value: object = importlib.import_module(module_name)
        for attribute in attributes.partition("[")[0].strip().split("."):
            value = getattr(value, attribute)
    except (Exception, SystemExit) as error:
        raise LoadFailed(f"{found.target} cannot be imported: {type(error).__name__}: {error}") from error
    if not inspect.isclass(value) or not issubclass(value, Petal):
        raise LoadFailed(f"{found.target} is not a petal: it must be a class that inherits from Petal")
    return value


def unload(found: Found) -> list[str]:
    """Forget the modules of a petal's package, so that the next load reads the files anew; their names."""
    package = found.module.partition(".")[0]
    if package == _OURS:
        package = found.module  # never more of ours than the petal itself
    gone = [name for name in sys.modules if name == package or name.startswith(f"{package}.")]
    for name in gone:
        del sys.modules[name]
    importlib.invalidate_caches()
    return gone
