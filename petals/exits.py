"""Ways out of a petal's code that are no exceptions of its own, as failures of that petal.

``sys.exit`` would end the process of everybody. A cancellation that nobody of us ordered, because it awaited a task
that was cancelled, would look like ours and end what must go on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator


class PetalExited(RuntimeError):
    """A petal's code called ``sys.exit``, or ended with a cancellation of its own."""

    code = "petal_exited"

    @classmethod
    def of(cls, error: SystemExit) -> PetalExited:
        """As which ``sys.exit`` is told."""
        return cls(f"it called sys.exit({error.code!r}); a petal cannot end the process that it lives in")


@contextlib.contextmanager
def contained() -> Iterator[None]:
    """Raise PetalExited where the code inside raises SystemExit, or a CancelledError without having been cancelled."""
    try:
        yield
    except asyncio.CancelledError as error:
        if _is_cancelled():
            raise
        raise PetalExited("something that it waited for was cancelled, and it did not handle that") from error
    except SystemExit as error:
        raise PetalExited.of(error) from error


def _is_cancelled() -> bool:
    try:
        task = asyncio.current_task()
    except RuntimeError:  # a thread without a loop
        return False
    return task is not None and task.cancelling() > 0
