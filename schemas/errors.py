"""Why something could not become a record."""

from __future__ import annotations


class RecordInvalid(ValueError):
    """A record or payload breaks the wire contract.

    ``field`` names the offending field (dotted for nested payload fields), ``problem`` says what is wrong with it and
    ``limit`` which limit or form was expected, where there is one. ``code`` is stable across versions.
    """

    code = "record_invalid"

    def __init__(self, field: str, problem: str, *, limit: str | None = None) -> None:
        self.field = field
        self.problem = problem
        self.limit = limit
        super().__init__(f"field {field!r}: {problem}" + (f" (expected {limit})" if limit else ""))
