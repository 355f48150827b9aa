"""Signed frames that somebody recorded before a crash, and plays back after it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mavlink.test_signing import EPOCH, KEY, NOW, PATIENCE_S, SECOND, last_of, signed_at
from petalbus.handlers.mavlink.wire.framing import Frame
from petalbus.handlers.mavlink.wire.signing import Signer, Verdict


async def saved(signer: Signer, memory: Path) -> bytes:
    """Use it once; what is in its memory then."""
    used = last_of(signer)
    async with asyncio.timeout(PATIENCE_S):
        while not memory.exists() or int(memory.read_bytes()) < used:
            await asyncio.sleep(0.01)
    return memory.read_bytes()


@pytest.mark.parametrize("clock", [0.0, NOW - 3600.0, NOW], ids=["none", "behind", "right"])
async def test_what_was_heard_before_a_crash_is_not_heard_again_after_it(tmp_path: Path, clock: float) -> None:
    """Also what came after the last saving, for which a new stream's window of a minute would be open."""
    memory = tmp_path / "signing"
    before = Signer(KEY, memory=memory, wall_clock=NOW)
    recorded: list[Frame] = [signed_at(seconds) for seconds in (0.0, 1.0, 10.0, 29.0)]
    async with before.kept():
        kept = await saved(before, memory)
        assert [before.verify(frame) for frame in recorded] == [Verdict.GOOD] * 4
    memory.write_bytes(kept)  # as it was when the power went
    after = Signer(KEY, memory=memory, wall_clock=clock)
    async with after.kept():
        assert [after.verify(frame) for frame in recorded] == [Verdict.OLD] * 4
        assert after.counters.old == 4
        assert after.verify(signed_at(30.0 + 4 * 60.0)) is Verdict.GOOD, (
            "the vehicle learns our time and is heard again"
        )


async def test_what_we_sent_before_a_crash_is_behind_what_we_send_after_it(tmp_path: Path) -> None:
    """A vehicle that has heard us must not take us for a repetition, nor a repetition for us."""
    memory = tmp_path / "signing"
    used = 0
    for _ in range(3):
        signer = Signer(KEY, memory=memory, wall_clock=NOW)  # the clock's battery is empty: each time it is the same
        async with signer.kept():
            kept = await saved(signer, memory)
            first = int(kept)
            assert first > used
            # half a minute later at most it would have been saved again
            assert signer.verify(signed_at((first - (NOW - EPOCH) * SECOND) / SECOND + 29.0)) is Verdict.GOOD
            used = last_of(signer)
        memory.write_bytes(kept)
