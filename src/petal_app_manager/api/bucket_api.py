"""See `petalbus.daemon.http.bucket`."""

from petalbus.daemon.http.bucket import router as router
from petalbus.daemon.http.bucket import set_logger as _set_logger  # noqa: F401  # what existing programs call
