"""Adopts raw records: what any program in any language appends to the ingest stream with a bare XADD.

    XADD {bus}:ingest * id .. type .. source .. data ..   ->  read  ->  admit  ->  one script: append + acknowledge

The append (deduplicated by ``id``) and the acknowledgement are one atomic step, so a crash at any moment leaves an entry
either waiting or adopted, never both. What is not valid becomes a dead letter of the app ``ingest`` that says why.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from petalbus.daemon.bus.connection import Connection, ServerError, pack
from petalbus.daemon.bus.errors import BusError, OutcomeUnknown
from petalbus.daemon.bus.keys import GROUP
from petalbus.daemon.bus.lane import Lane
from petalbus.daemon.bus.ratelimit import TokenBucket
from petalbus.daemon.services.admission import Admission, admit
from petalbus.daemon.services.adoption import ALSO_HEADER, BatchCall, Letter, short_windows
from petalbus.daemon.services.losses import Losses
from petalbus.daemon.services.own_lane import own_lane
from petalbus.schemas.errors import RecordInvalid

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.daemon.bus.outbox import Outbox

log = logging.getLogger("petalbus.services")

INGEST_GROUP: Final = "ingest"
CONSUMER: Final = "daemon"
"""One name for good: a daemon that comes back finds what the one before had read and not adopted."""

INGEST_APP: Final = "ingest"
"""The application whose dead letters are the raw records that could not be adopted."""

_FEW_LARGE: Final = 4
_LARGE_BYTES: Final = 16 * 1024
_MAX_SOURCES: Final = 4096
