"""`petalbus version`."""

from __future__ import annotations

import platform

from petalbus._version import __version__
from petalbus.daemon.cli.common import Data, Json, say, say_json


def version(data: Data = None, json: Json = False) -> None:  # noqa: ARG001  # every command takes --data
    """Print the version."""
    if json:
        say_json({"version": __version__, "python": platform.python_version(), "machine": platform.machine()})
    else:
        say(f"petalbus {__version__}")
