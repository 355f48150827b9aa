"""Local databases for tests: each in a directory of its own, for a machine called M1."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from petalbus.petals.organization import OrganizationManager
from petalbus.petals.proxies.localdb import LocalDBProxy

MACHINE = "M1"


@contextlib.asynccontextmanager
async def local_db(directory: Path, **options: Any) -> AsyncIterator[LocalDBProxy]:
    """A started proxy on ``<directory>/local.db``; stopped at the end."""
    organization = OrganizationManager(directory / "thing-parameters.json", data=directory)
    given = {"machine_id": MACHINE, "organization": organization, "file": directory / "local.db", **options}
    proxy = LocalDBProxy(**given)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
