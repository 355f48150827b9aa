"""What happens while petals are looked for, and while one starts slowly."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from petalbus.daemon.bus.client import Bus

from .place import Place

SLOW = """
STEPS = []
class P(Petal):
    name = "slow"
    use_mqtt_proxy = True
    async def _setup_mqtt_topics(self): STEPS.append("mqtt topics")
    async def async_startup(self):
        STEPS.append("begun")
        while not (FOLDER / "go").exists():
            await asyncio.sleep(0.01)
        STEPS.append("done")
"""


async def until(condition: Any, what: str, seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(0.01)


async def test_an_organisation_that_appears_while_a_petal_starts_is_not_missed(place: Place, ground: Bus) -> None:
    """S-207, S-223, S-242: MQTT is set up once the petal runs, without another change."""
    place.petal("slow", f"from pathlib import Path\nFOLDER = Path({str(place.folder)!r})\n" + SLOW)
    starting = asyncio.create_task(place.start(), name="start")
    await until(lambda: "begun" in getattr(sys.modules.get("slow"), "STEPS", ()), "it starts")
    told = {"thing": {"thingName": "Instance-m1", "lastReported": {"organizationId": "ORG1"}}}
    (place.folder / "thing.json").write_text(json.dumps(told))
    assert place.manager is not None
    organization = place.manager._surroundings.organization
    await until(lambda: organization.organization_id == "ORG1", "the organisation is known")
    await asyncio.sleep(0.1)  # all that are told of it have been told
    (place.folder / "go").touch()
    await starting
    await place.until("slow", "running")
    steps = sys.modules["slow"].STEPS
    await until(lambda: "mqtt topics" in steps, "MQTT is set up", seconds=5.0)
    assert steps == ["begun", "done", "mqtt topics"]


class Slow(importlib.metadata.DistributionFinder):
    """Installed packages on a slow card: notes in which thread they are looked for."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []

    def find_spec(self, *_: object) -> None:
        return None

    def find_distributions(
        self,
        context: importlib.metadata.DistributionFinder.Context = importlib.metadata.DistributionFinder.Context(),  # noqa: B008  # the base's
    ) -> Iterator[importlib.metadata.Distribution]:
        if context.name is None:
            self.threads.append(threading.current_thread())
            time.sleep(0.3)
        return iter(())


@pytest.fixture
def slow_card() -> Iterator[Slow]:
    finder = Slow()
    sys.meta_path.append(finder)
    yield finder
    sys.meta_path.remove(finder)


async def test_looking_for_petals_does_not_hold_up_the_loop(place: Place, ground: Bus, slow_card: Slow) -> None:
    """At the start, and when a petal is asked for that is not known yet."""
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.005)
            longest = max(longest, time.monotonic() - before)

    watching = asyncio.create_task(watch(), name="watch")
    try:
        place.petal("one", 'class P(Petal):\n    name = "one"\n')
        manager = await place.start()
        await place.until("one", "running")
        with pytest.raises(Exception, match="there is no petal 'nobody'"):
            await manager.act("nobody", "restart")
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    assert len(slow_card.threads) >= 2
    assert threading.main_thread() not in slow_card.threads
    assert longest < 0.25
