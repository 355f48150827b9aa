"""What can go wrong with a bucket. ``status`` is HTTP's number for it; the texts are those that programs compare.

BucketError
├── FileRefused     400  the file is no flight log
├── Denied          403  the key belongs to another machine, or the store refuses us
│   └── NoTokens    403  the service that gives credentials is there, and has none just now
│       └── Refusal 403  it refuses to give us any
├── NotThere        404  no such object
├── WrongBytes      502  what the store holds is not what was sent
├── Unsupported     501  the store has no such function
├── NotEncrypted    501  the store does not encrypt as it is asked to
└── Away            503  the store, or the service that gives credentials, cannot be reached
"""

from __future__ import annotations


class BucketError(Exception):
    """Base of them. ``passes``: waiting may help."""

    code = "bucket_error"
    status = 500
    passes = False


class FileRefused(BucketError):
    """The file is no flight log."""

    code = "file_refused"
    status = 400


class Denied(BucketError):
    """Not ours, or refused."""

    code = "access_denied"
    status = 403


class NoTokens(Denied):
    """The session token service failed (HTTP 5xx, or it is too busy)."""

    passes = True


class Refusal(NoTokens):
    """The session token service says no (HTTP 400, 401, 403).

    It passes as long as nobody is logged in there, for example; whoever waits decides when it means what it says.
    """


class NotThere(BucketError):
    """No such object."""

    code = "not_found"
    status = 404


class WrongBytes(BucketError):
    """The store's checksum or size is not the file's."""

    code = "wrong_bytes"
    status = 502


class Unsupported(BucketError):
    """The store has no such function."""

    code = "unsupported"
    status = 501


class NotEncrypted(BucketError):
    """The store does not encrypt as it is asked to: a matter of its settings or ours, and not of a log."""

    code = "not_encrypted"
    status = 501
    passes = True


class Away(BucketError):
    """Not to be reached now."""

    code = "unavailable"
    status = 503
    passes = True
