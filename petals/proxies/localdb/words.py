"""What goes into SQL: names are checked and quoted, values are always bound."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from petalbus.petals.proxies.localdb.errors import QueryRefused

OWN: Final = "petalbus_"
"""Begin of the names of our own tables: petals read them, and write them only through the proxy's calls."""

Params = Sequence[Any] | Mapping[str, Any]

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_MAX_INTEGER: Final = 2**63 - 1
_PLAIN: Final = (type(None), bool, int, float, str, bytes, bytearray, memoryview)


class All:
    """The type of ``ALL``."""

    def __repr__(self) -> str:
        return "ALL"


ALL: Final = All()
"""Given as ``where``: every row of the table is meant."""

Where = Mapping[str, Any] | All


class Statement(NamedTuple):
    """One statement and what is bound to its placeholders."""

    sql: str
    params: Params


def quoted(name: Any, what: str) -> str:
    """A table's or column's name, quoted. Raises QueryRefused when it is not letters, digits and underscores."""
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise QueryRefused(
            f"{name!r} cannot be the name of a {what}: letters, digits and underscores, 63 at most, no digit first"
        )
    return f'"{name}"'


def insert(table: str, data: Mapping[str, Any]) -> Statement:
    """INSERT of one row; no data at all gives a row of defaults."""
    into = quoted(table, "table")
    values = _columns("insert", "data", data)
    if not values:
        return Statement(f"INSERT INTO {into} DEFAULT VALUES", ())
    marks = ", ".join("?" * len(values))
    sql = f"INSERT INTO {into} ({', '.join(values)}) VALUES ({marks})"  # noqa: S608  # checked names, marks
    return Statement(sql, tuple(values.values()))


def update(table: str, data: Mapping[str, Any], where: Where) -> Statement:
    """UPDATE of the rows that equal ``where``."""
    into = quoted(table, "table")
    values = _columns("update", "data", data)
    if not values:
        raise QueryRefused(f"update of {table!r}: data is empty; name the columns to change")
    condition, bound = _condition("update", table, where)
    changes = ", ".join(f"{column} = ?" for column in values)
    sql = f"UPDATE {into} SET {changes}{condition}"  # noqa: S608  # checked names, marks
    return Statement(sql, (*values.values(), *bound))


def delete(table: str, where: Where) -> Statement:
    """DELETE of the rows that equal ``where``."""
    condition, bound = _condition("delete", table, where)
    sql = f"DELETE FROM {quoted(table, 'table')}{condition}"  # noqa: S608  # checked names, marks
    return Statement(sql, bound)


def query(sql: Any, params: Any) -> Statement:
    """A petal's own statement. Raises QueryRefused when the parameters cannot be bound."""
    if not isinstance(sql, str) or not sql.strip():
        raise QueryRefused(f"{sql!r} is no SQL statement")
    if sql.lstrip()[:6].upper() == "VACUUM":
        raise QueryRefused("VACUUM is refused: the connection is shared; call `vacuum()`")
    if params is None:
        return Statement(sql, ())
    if isinstance(params, Mapping):
        return Statement(sql, {str(name): bindable(value, f"parameter :{name}") for name, value in params.items()})
    if isinstance(params, str | bytes) or not isinstance(params, Sequence):
        raise QueryRefused(f"parameters must be a list, a tuple or a dictionary, not {type(params).__name__}")
    return Statement(sql, tuple(bindable(value, f"parameter {at}") for at, value in enumerate(params, 1)))


def bindable(value: Any, what: str) -> Any:
    """A value as SQLite stores it. Raises QueryRefused for what it has no type for."""
    if isinstance(value, _PLAIN):
        if isinstance(value, int) and not -_MAX_INTEGER - 1 <= value <= _MAX_INTEGER:
            raise QueryRefused(f"{what}: {value} has more than 64 bits")
        return value
    if isinstance(value, dt.date | dt.time):  # a datetime is a date
        return value.isoformat()
    advice = "; store json.dumps(...) of it" if isinstance(value, dict | list | tuple) else ""
    raise QueryRefused(f"{what}: SQLite has no type for {type(value).__name__}{advice}")


def _columns(call: str, what: str, data: Any) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise QueryRefused(f"{call}: {what} must be a dictionary of column to value, not {type(data).__name__}")
    return {quoted(name, "column"): bindable(value, f"column {name!r}") for name, value in data.items()}


def _condition(call: str, table: str, where: Any) -> tuple[str, tuple[Any, ...]]:
    if isinstance(where, All):
        return "", ()
    if not isinstance(where, Mapping):
        raise QueryRefused(
            f"{call}: where must be a dictionary of column to value; use execute_query for anything else"
        )
    values = _columns(call, "where", where)
    if not values:
        raise QueryRefused(f"{call} of {table!r}: where is empty, which would mean every row; say where=ALL to mean it")
    # IS, so that None finds NULL; it uses an index as = does.
    return f" WHERE {' AND '.join(f'{column} IS ?' for column in values)}", tuple(values.values())
