"""The bucket proxies that run in this process, for who has no other way to them."""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from petalbus.petals.proxies.bucket.proxy import S3BucketProxy

_numbers = itertools.count()
_started: weakref.WeakValueDictionary[int, S3BucketProxy] = weakref.WeakValueDictionary()


def began(proxy: S3BucketProxy) -> None:
    """It has been started."""
    ended(proxy)
    _started[next(_numbers)] = proxy


def ended(proxy: S3BucketProxy) -> None:
    """It has been stopped."""
    for number, other in list(_started.items()):
        if other is proxy:
            del _started[number]


def latest() -> S3BucketProxy | None:
    """The one that was started last, of those that were not stopped."""
    return _started[max(_started)] if _started else None
