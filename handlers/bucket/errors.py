"""What can go wrong with a bucket. ``status`` is HTTP's number for it; the texts are those that programs compare.

BucketError
├── FileRefused     400  the file is no flight log
├── Denied          403  the key belongs to another machine, or the store refuses us
├── NotThere        404  no such object
└── Away            503  the store, or the service that gives credentials, cannot be reached
"""

from __future__ import annotations


class BucketError(Exception):
    """Base of them."""

    code = "bucket_error"
    status = 500


class FileRefused(BucketError):
    """The file is no flight log."""

    code = "file_refused"
    status = 400


class Denied(BucketError):
    """Not ours, or refused."""

    code = "access_denied"
    status = 403


class NotThere(BucketError):
    """No such object."""

    code = "not_found"
    status = 404


class Away(BucketError):
    """Not to be reached now."""

    code = "unavailable"
    status = 503
