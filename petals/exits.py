"""``sys.exit`` in a petal's code: a failure of that petal. Left alone, it would end the process of everybody."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class PetalExited(RuntimeError):
    """A petal's code called ``sys.exit``."""

    code = "petal_exited"


@contextlib.contextmanager
def contained() -> Iterator[None]:
    """Raise PetalExited where the code inside raises SystemExit."""
    try:
        yield
    except SystemExit as error:
        raise PetalExited(
            f"it called sys.exit({error.code!r}); a petal cannot end the process that it lives in"
        ) from error
