"""Facts about the machine and the programs, kept beside every result."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from petalbus._version import __version__

_PACKAGES = ("redis", "hiredis", "uvloop", "orjson", "pydantic", "faststream", "nats-py")


def facts(*, server: str, core: int | None) -> dict[str, Any]:
    """What one must know to read the absolute figures. ``core``: what all measured processes were pinned to."""
    return {
        "cores": os.cpu_count(),
        "pinned_to": core,
        "processor": _processor(),
        "kernel": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "petalbus": __version__,
        "server": server,
        "packages": {name: version for name in _PACKAGES if (version := _version(name)) is not None},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    names = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    return next(names, None)
