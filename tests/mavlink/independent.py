"""Other people's ground stations at the other end: MAVSDK and MAVProxy, where they are installed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

from support.procs import Child, Children

needs_mavsdk = pytest.mark.skipif(importlib.util.find_spec("mavsdk") is None, reason="mavsdk is not installed")
PLACES = (str(Path(sys.executable).parent), os.environ.get("PATH", ""))
MAVPROXY = shutil.which("mavproxy.py", path=os.pathsep.join(PLACES))
needs_mavproxy = pytest.mark.skipif(MAVPROXY is None, reason="no mavproxy.py: the package MAVProxy brings it")
SIM = "petalbus.handlers.mavlink.sim"
HOMES = {"px4": (47.3977432, 8.5455940, 489.4), "ardupilot": (-35.3632621, 149.1652371, 584.1)}
"""Degrees, and metres above the sea."""


def free_port() -> int:
    """A UDP port that nobody has just now."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as finder:
        finder.bind(("127.0.0.1", 0))
        return int(finder.getsockname()[1])


def wait_for(condition: Callable[[], Any], *, timeout: float = 20.0) -> Any:
    """Look again and again, in a thread; returns what the condition said at last."""
    end = time.monotonic() + timeout
    while not (told := condition()):
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.03)
    return told


class Sdk:
    """MAVSDK's library with one vehicle. All of it blocks: use it in a thread, as ``with Sdk(url) as sdk``."""

    def __init__(self, url: str) -> None:
        """``url``: MAVSDK's own, such as udpin://127.0.0.1:14540."""
        from mavsdk import ComponentType
        from mavsdk.mavsdk import Configuration, Mavsdk

        self._sdk = Mavsdk(Configuration.create_with_component_type(ComponentType.GROUND_STATION))
        self._sdk.add_any_connection(url)
        self.system = self._sdk.first_autopilot(20.0)
        assert self.system is not None, "MAVSDK finds no vehicle"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sdk.destroy()

    def plugin(self, name: str) -> Any:
        """One of its parts: ``action``, ``telemetry``, ``param``, ``mission_raw`` and so on."""
        module = importlib.import_module(f"mavsdk.plugins.{name}")
        return getattr(module, "".join(part.capitalize() for part in name.split("_")))(self.system)

    @staticmethod
    def result_of(start: Callable[..., Any], *arguments: Any) -> str:
        """Start something that tells its progress; the name of its last result."""
        over, results = threading.Event(), []

        def told(result: Any, _data: Any, _user: Any = None) -> None:
            results.append(result.name)
            if result.name != "NEXT":
                over.set()

        start(*arguments, told)
        assert over.wait(30), results
        return str(results[-1])


async def start_mavproxy(children: Children, folder: Path, port: int, *options: str) -> Child:
    """MAVProxy that listens on a UDP port for a vehicle. Its parts that draw and speak are left out.

    It runs with its own interpreter and pymavlink, and sees nothing of ours.
    """
    assert MAVPROXY is not None
    # The script's first line names that interpreter too; with a space in its path that does not work.
    beside = Path(MAVPROXY).resolve().with_name("python")
    parts = "link,param,arm,mode,wp,ftp,log,cmdlong,misc"
    return await children.run(
        *((str(beside), MAVPROXY) if beside.exists() else (MAVPROXY,)),
        *(f"--master=udpin:127.0.0.1:{port}", f"--default-modules={parts}"),
        *(f"--state-basedir={folder}", f"--logfile={folder / 'mav.tlog'}", *options),
        environment={"PYTHONPATH": "", "PYTHONWARNINGS": "ignore", "HOME": str(folder)},
    )
