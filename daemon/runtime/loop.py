"""The daemon's event loop, which only the daemon ends: ``sys.exit`` in some task of a petal does not."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Coroutine
from typing import Any, Final

import structlog

from petalbus._loop import loop_factory

log: Final = structlog.get_logger(__name__)


def run_to_its_end(main: Coroutine[Any, Any, None]) -> None:
    """Run ``main`` as ``petalbus.run`` does; SystemExit from another task ends that task alone.

    An event loop lets SystemExit out, wherever it was raised, and can be run on as if nothing had happened.
    """
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        loop = runner.get_loop()
        task = loop.create_task(main, name="petalbus.main")
        while not task.done():
            try:
                loop.run_until_complete(task)
            except SystemExit as error:
                if task.done():
                    raise
                *_, last = traceback.extract_tb(error.__traceback__)
                where = f"{last.filename}:{last.lineno} in {last.name}"
                log.error(  # noqa: TRY400  # where it was called says it all
                    "sys.exit was called in a task; it ended that task alone", code=str(error.code), where=where
                )
