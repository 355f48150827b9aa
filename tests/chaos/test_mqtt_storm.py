"""Messages both ways over a real broker while the daemon, the broker and the server are killed at random."""

from __future__ import annotations

import os
import random

import pytest

from chaos import mqtt_storm

pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]

SEED = int(os.environ.get("PETALBUS_CHAOS_SEED", str(random.randrange(1 << 31))))
MESSAGES = 150


@pytest.mark.parametrize("forget", [False, True], ids=["sessions-kept", "sessions-lost"])
async def test_nothing_is_lost_or_done_twice(forget: bool) -> None:
    """I1, I2, I3, S-211: every command has one effect or is answered; every message comes out; order is kept.

    Where the broker loses its sessions, what it had accepted and not yet brought to us is lost by it: only that.
    """
    outcome = await mqtt_storm.run(messages=MESSAGES, rate=60, kills=3, seed=SEED, forget=forget)
    told = f"seed {SEED}, killed {dict(outcome.kills)}"
    assert outcome.twice == [], told
    assert outcome.disorder() == [], told
    lost = outcome.lost(MESSAGES)
    stored = set(outcome.stored)
    assert [number for number in lost["commands"] if number in stored] == [], told
    if not forget:
        assert lost == {"commands": [], "messages": []}, told
