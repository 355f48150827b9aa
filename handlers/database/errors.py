"""What can go wrong with a table in the cloud. ``status`` is HTTP's number for it.

TableError
├── Refused       400  it can never be written or read as it stands (or the cloud says so: then the cloud's own number)
├── Denied        403  the item belongs to another machine
├── NotThere      404  no such item, or it was deleted
├── Deleted       404  an update of an item that was deleted: what it says would be lost
├── Conflict      409  somebody else has written the item, or the write's condition does not hold
├── Failing       503  the cloud is there, and cannot do this now
│   ├── Busy      503  it has too much to do, for whomever: no word against this one
│   └── Forbidden 403  the cloud takes who we are, and does not allow this: somebody may yet allow it
│       └── NoTable 404  it has no such table: somebody may yet make it
└── Away          503  the cloud, or the service that gives out tokens for it, cannot be used
"""

from __future__ import annotations


class TableError(Exception):
    """Base of them. ``passes``: waiting may help. ``away``: and nothing else can be done meanwhile, either."""

    code = "table_error"
    status = 500
    passes = False
    away = False


class Refused(TableError):
    """It will not be done, however often it is tried."""

    code = "refused"
    status = 400

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Denied(TableError):
    """The item is not ours."""

    code = "access_denied"
    status = 403


class NotThere(TableError):
    """No such item."""

    code = "no_item"
    status = 404


class Deleted(TableError):
    """The item to be changed was deleted. Not NotThere: of a deletion nothing is lost, of an update its members are."""

    code = "no_item"
    status = 404


class Conflict(TableError):
    """What the cloud has is not what the write expects."""

    code = "conflict"
    status = 409


class Failing(TableError):
    """An answer that says: not now."""

    code = "cloud_failing"
    status = 503
    passes = True


class Busy(Failing):
    """Throttled, or too slow. However often: the write is not to blame, and is not given up for it."""

    code = "cloud_busy"


class Forbidden(Failing):
    """Not allowed for this table or item, though the cloud takes our token. No dead letter before it has waited."""

    code = "cloud_forbidden"
    status = 403


class NoTable(Forbidden):
    """No table of that name, at this moment. What was accepted for it waits: tables are restored, settings mended."""

    code = "no_table"
    status = 404


class Away(TableError):
    """No answer, or nobody believes who we are. Of a write that was under way nobody knows whether it was done."""

    code = "cloud_away"
    status = 503
    passes = True
    away = True
