"""A random run: members and the server killed, stopped and cut at random, sends all the while; then all is counted.

    PETALBUS_CHAOS_SEED=7 PETALBUS_CHAOS_SECONDS=600 pytest tests/chaos/test_random.py

The seed decides what is done and when; what the machine makes of it differs. It is shown when the test fails, and with
--log-cli-level=INFO. Suites run a short slice.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections import Counter

import pytest

from bus.clients import until
from chaos.world import World, settled
from petalbus.daemon.bus.client import Bus
from petalbus.daemon.bus.errors import BusUnavailable
from petalbus.schemas.record import Record
from petalbus.schemas.vocabulary import Priority, Status

from support.procs import Child
from support.proxy import Proxy

log = logging.getLogger("petalbus.chaos")

SECONDS = float(os.environ.get("PETALBUS_CHAOS_SECONDS", "12"))
SEED = int(os.environ.get("PETALBUS_CHAOS_SEED", str(random.randrange(1 << 31))))

pytestmark = [pytest.mark.processes, pytest.mark.timeout(SECONDS + 90)]


class Chaos:
    """Does harm to a world, by its own dice."""

    def __init__(self, world: World, proxy: Proxy, dice: random.Random) -> None:
        self.world = world
        self.proxy = proxy
        self.dice = dice
        self.members: list[Child] = []
        self.done = Counter[str]()

    async def member(self) -> None:
        """One more member, over the wire that can be cut or directly."""
        url = self.proxy.url if self.dice.random() < 0.5 else None
        self.members.append(await self.world.spawn("keep_replies=10000000", url=url))

    async def until_the_end(self, end: float) -> None:
        """One piece of harm after the other."""
        harms = (
            [self.kill_member] * 4 + [self.stop_member] * 3 + [self.cut] * 3 + [self.kill_server, self.forget_scripts]
        )
        while time.monotonic() < end:
            await asyncio.sleep(self.dice.uniform(0.1, 0.8))
            harm = self.dice.choice(harms)
            self.done[harm.__name__] += 1
            await harm()

    async def kill_member(self) -> None:
        """kill -9 and a successor."""
        victim = self.members.pop(self.dice.randrange(len(self.members)))
        victim.kill()
        await victim.wait()
        await self.member()

    async def stop_member(self) -> None:
        """SIGSTOP for shorter or longer than a lease."""
        victim = self.dice.choice(self.members)
        victim.freeze()
        await asyncio.sleep(self.dice.choice([0.3, 1.0, 2.5]))
        victim.thaw()

    async def cut(self) -> None:
        """Every connection over the wire breaks."""
        self.proxy.cut()

    async def kill_server(self) -> None:
        """kill -9, away for a moment."""
        self.world.server.kill()
        await asyncio.sleep(self.dice.uniform(0.0, 1.0))
        self.world.server.start()

    async def forget_scripts(self) -> None:
        """What a failover would do to the scripts."""
        self.world.server.command("SCRIPT", "FLUSH")


async def _send_all_the_while(gcs: Bus, dice: random.Random, end: float) -> dict[str, str]:
    """Publish until the end; the ids whose publish returned, with their stream ids."""
    stored: dict[str, str] = {}
    number = 0
    while time.monotonic() < end:
        burst = []
        for _ in range(dice.randrange(1, 12)):
            wish = {"n": number, "pause": dice.choice([0, 0, 0.001, 0.05])}
            kind, level = dice.choice(["rerun", "rerun", "report"]), Priority(dice.randrange(1, 5))
            burst.append(_send(gcs, kind, wish, f"m{number}", level, stored))
            number += 1
        await asyncio.gather(*burst)
        await asyncio.sleep(dice.uniform(0.0, 0.05))
    return stored


async def _send(gcs: Bus, kind: str, wish: object, message_id: str, level: Priority, stored: dict[str, str]) -> None:
    while True:
        try:
            receipt = await gcs.send("app", kind, wish, id=message_id, priority=level)
        except BusUnavailable:
            continue  # unknown: the same id again is safe
        stored[message_id] = receipt.stream_id
        return


async def test_whatever_happens_the_contract_holds(own_world: World, caplog: pytest.LogCaptureFixture) -> None:
    """I1, I2, I3, I6: every acknowledged publish is handled, one final reply each, nothing pending, stored in order."""
    caplog.set_level(logging.INFO, "petalbus.chaos")
    log.info("PETALBUS_CHAOS_SEED=%d PETALBUS_CHAOS_SECONDS=%g", SEED, SECONDS)
    async with Proxy(own_world.clients.url) as proxy:
        chaos = Chaos(own_world, proxy, random.Random(SEED))
        for _ in range(3):
            await chaos.member()
        gcs = await own_world.sender(url=proxy.url)
        end = time.monotonic() + SECONDS
        harm = asyncio.create_task(chaos.until_the_end(end), name="chaos")
        stored = await _send_all_the_while(gcs, random.Random(SEED + 1), end)
        await harm
        log.info("%d messages; %s", len(stored), dict(chaos.done))
        await _everything_is_settled(own_world, stored)


async def _everything_is_settled(world: World, stored: dict[str, str]) -> None:
    looking = await world.sender("gcs", presence=False)

    async def open_ones() -> list[str]:
        return [one for one in stored if not (await looking.status(one)).final]

    async def none_open() -> bool:
        return not await open_ones()

    await until(none_open, "every message is settled", seconds=40)
    await settled(looking)
    outcomes = Counter([await looking.status(one) for one in stored])
    assert set(outcomes) <= {Status.COMPLETED, Status.FAILED}, outcomes
    rows = await looking.call("XRANGE", looking.keys.replies("gcs"), "-", "+")
    replies = [Record.from_fields(fields) for _, fields in rows]
    final = Counter(str(reply.reply_to) for reply in replies if reply.kind is not None and reply.kind.final)
    assert final == dict.fromkeys(stored, 1), "one reply each"
    wrong = [
        reply.data["error_code"] for reply in replies if reply.data.get("error_code", "") not in ("", "OUTCOME_UNKNOWN")
    ]
    assert not wrong, f"nothing but an unknown outcome may have failed: {wrong[:5]}"
    await _effects_and_order(world, looking, stored, replies)


async def _effects_and_order(world: World, looking: Bus, stored: dict[str, str], replies: list[Record]) -> None:
    effects = world.effects()
    for reply in replies:
        one = str(reply.reply_to)
        if reply.data.get("error_code") != "OUTCOME_UNKNOWN":
            assert effects[one] >= 1, f"{one} was answered and not done"
        if reply.type == "report_response":
            assert effects[one] <= 1, f"{one} must not run twice"
    for level in Priority:
        entries = await looking.call("XRANGE", looking.keys.inbox("app", level), "-", "+")
        records = [(entry.decode(), Record.from_fields(fields)) for entry, fields in entries]
        assert {record.id: entry for entry, record in records}.items() <= stored.items(), (
            "stored once, as the receipt says"
        )
        numbers = [record.data["n"] for _, record in records]
        assert numbers == sorted(numbers), f"{level.name} is not in the order of sending"
