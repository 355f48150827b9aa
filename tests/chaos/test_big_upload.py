"""A short slice of ``big_upload``: a log of a dozen parts whose uploader is killed where the seed says.

PETALBUS_CHAOS_SEED=7 PETALBUS_BIG_UPLOAD_MB=500 pytest tests/chaos/test_big_upload.py
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from chaos import big_upload

pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]

SEED = int(os.environ.get("PETALBUS_CHAOS_SEED", str(random.randrange(1 << 31))))
MEGABYTES = int(os.environ.get("PETALBUS_BIG_UPLOAD_MB", "96"))


async def test_a_kill_somewhere_on_the_way(tmp_path: Path) -> None:
    """S-245, S-263, I6: the same bytes at the end; little memory; sent again is only what was under way at the kill."""
    out = await big_upload.run(MEGABYTES, kills=1, folder=tmp_path, seed=SEED)
    told = f"seed {SEED}: {out}"
    assert out.same_bytes, told
    assert (out.kills, out.result["attempts"], out.unfinished) == (1, 2, 0), told
    assert out.resent_mb <= 2 * big_upload.PART / big_upload.MB, told  # the parts that one upload has under way
    assert out.again_mb == 0, told
    assert out.peak_mb < 175, told  # the library, and three parts: not the file
