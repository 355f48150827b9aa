"""Migrations: steps in order, each applied once, in a transaction with the note that it was."""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any, Final

from petalbus.petals.proxies.localdb.atomic import BEGIN, COMMIT, ROLLBACK
from petalbus.petals.proxies.localdb.errors import MigrationRefused, QueryFailed, QueryRefused, primary_code
from petalbus.petals.proxies.localdb.guard import Guard

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_TABLE: Final = """
    CREATE TABLE IF NOT EXISTS petalbus_migrations (
        name TEXT NOT NULL, step INTEGER NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (name, step)
    ) WITHOUT ROWID
"""


def checked(name: Any, steps: Any) -> tuple[str, ...]:
    """The steps. Raises QueryRefused when the name or a step cannot be one."""
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise QueryRefused(f"{name!r} cannot name migrations: letters, digits, dots, underscores, hyphens; 100 at most")
    given = tuple(steps) if isinstance(steps, Sequence) and not isinstance(steps, str) else ()
    if len(given) != len(steps) or not all(isinstance(step, str) and step.strip() for step in given):
        raise QueryRefused(f"migrations of {name!r}: give a list of SQL texts, one a step")
    return given


def apply(connection: sqlite3.Connection, name: str, steps: Sequence[str], guard: Guard | None = None) -> int:
    """Apply the steps that are not recorded yet; how many those were. Raises MigrationRefused.

    ``guard`` given: the steps' statements are a petal's, and run as such; the notes about them are ours.
    """
    switch = guard or Guard()
    applied = 0
    for number, step in enumerate(steps, 1):
        connection.execute(BEGIN)  # so that of two processes one waits, and then sees the other's note
        try:
            connection.execute(_TABLE)
            _refuse_newer(connection, name, len(steps))
            if not _is_recorded(connection, name, number, step):
                switch.trusted = guard is None
                try:
                    _run(connection, name, number, step)
                finally:
                    switch.trusted = True
                connection.execute("INSERT INTO petalbus_migrations VALUES (?, ?, ?)", (name, number, _digest(step)))
                applied += 1
            connection.execute(COMMIT)
        except BaseException:
            if connection.in_transaction:
                connection.execute(ROLLBACK)
            raise
    return applied


def statements(script: str) -> Iterator[str]:
    """The single statements of a text; a trigger's body is no end of one."""
    collected = ""
    for part in re.split(r"(;)", script):
        collected += part
        if part == ";" and sqlite3.complete_statement(collected):
            yield collected.strip()
            collected = ""
    if collected.strip():
        yield collected.strip()


def _run(connection: sqlite3.Connection, name: str, number: int, step: str) -> None:
    for statement in statements(step):
        try:
            connection.execute(statement)
        except sqlite3.Error as error:
            if primary_code(error) not in (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT):
                raise
            raise QueryFailed(
                f"step {number} of the migrations {name!r} failed and was undone: {error}; in: {statement[:200]}",
                getattr(error, "sqlite_errorname", ""),
            ) from error


def _is_recorded(connection: sqlite3.Connection, name: str, number: int, step: str) -> bool:
    found = connection.execute(
        "SELECT digest FROM petalbus_migrations WHERE name = ? AND step = ?", (name, number)
    ).fetchone()
    if found is not None and found[0] != _digest(step):
        raise MigrationRefused(
            f"step {number} of the migrations {name!r} was changed after it had been applied: "
            "leave it as it was and add a step that makes the difference"
        )
    return found is not None


def _refuse_newer(connection: sqlite3.Connection, name: str, given: int) -> None:
    last = connection.execute("SELECT MAX(step) FROM petalbus_migrations WHERE name = ?", (name,)).fetchone()[0]
    if last is not None and last > given:
        raise MigrationRefused(
            f"the file has {last} steps of the migrations {name!r} and this program knows {given}: "
            "a newer version has used it; update the program"
        )


def _digest(step: str) -> str:
    """Of the words only: how it is indented makes no difference."""
    return hashlib.sha256(" ".join(step.split()).encode()).hexdigest()
