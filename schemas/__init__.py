"""The wire contract: typed records and everything that is written on the bus.

This package imports nothing else of PetalBus: programs that only read or write records can use it alone.
"""

from petalbus.schemas.compact import CompactEntry, CompactForm
from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.record import Record
from petalbus.schemas.vocabulary import Priority, ReplyKind, Status

__all__ = ["CompactEntry", "CompactForm", "Priority", "Record", "RecordInvalid", "ReplyKind", "Status"]
