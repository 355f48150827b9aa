"""An installation of petals for a test: a folder with their modules, settings, and a manager on a real server."""

from __future__ import annotations

import asyncio
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.options import BusOptions
from petalbus.daemon.petals.manager import PetalManager

from support.servers import RealServer

HEAD = """
import asyncio
from petalbus.petals import Petal, http_action, mqtt_action, on
"""


class Place:
    """An installation: a folder of petals, its settings, and a manager on a bus."""

    def __init__(self, folder: Path, server: RealServer, bus_name: str) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.data.mkdir()
        self.server = server
        self.bus_name = bus_name
        self.events: list[dict[str, Any]] = []
        self.settings: dict[str, Any] = {
            "bus": bus_name,
            "organization_file": folder / "thing.json",
            "machine_id": "m1",
            "petals_restarts": 2,
        }
        self.paths: list[str] = []
        self.manager: PetalManager | None = None

    def petal(self, module: str, code: str, *, target: str = "P") -> None:
        """Write a petal's module, and name it in the settings."""
        (self.folder / f"{module}.py").write_text(HEAD + textwrap.dedent(code))
        path = f"{module}:{target}"
        if path not in self.paths:
            self.paths.append(path)

    async def start(self, **settings: Any) -> PetalManager:
        chosen = SimpleNamespace(**{**self.settings, "petals_paths": ",".join(self.paths), **settings})

        def connect(app: str, **options: Any) -> Bus:
            return Bus(self.server.url, app=app, bus=self.bus_name, options=BusOptions(**options))

        self.manager = PetalManager(
            chosen,
            data=self.data,
            url=self.server.url,
            durability="no",
            connect=connect,
            mounts=None,
            report=lambda event, **more: self.events.append({"event": event, **more}),
        )
        await self.manager.start()
        return self.manager

    def told(self, name: str) -> dict[str, Any]:
        """What the manager says of a petal."""
        assert self.manager is not None
        names = ("name", "entry_point", "target")
        (one,) = [one for one in self.manager.describe() if name in [one[key].partition(":")[0] for key in names]]
        return one

    async def until(self, name: str, state: str, *, seconds: float = 15.0) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while (told := self.told(name))["state"] != state:
            assert time.monotonic() < end, told
            await asyncio.sleep(0.01)
        return told
