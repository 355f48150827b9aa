"""What DynamoDB is asked for: names and values stand outside of the expressions, so that no word is reserved."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from petalbus.handlers.database.errors import Refused
from petalbus.handlers.database.values import members, to_attribute
from petalbus.handlers.database.writes import BY, OWNER, SEQ, Operation, Policy, Write, watched

_MOST_FILTERS: Final = 50
_LONGEST: Final = 4096
"""Bytes of an expression, as the table takes it."""

_MOST_CONDITIONS: Final = 60
"""It takes 300 operators in one expression, and a condition on a member is up to four."""


class Words:
    """Placeholders of one request."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.values: dict[str, Any] = {}
        self._known: dict[str, str] = {}

    def name(self, name: str) -> str:
        """The placeholder of a member's name."""
        if name not in self._known:
            self._known[name] = f"#n{len(self._known)}"
            self.names[self._known[name]] = name
        return self._known[name]

    def value(self, value: Any) -> str:
        """The placeholder of a value. Raises Refused."""
        mark = f":v{len(self.values)}"
        self.values[mark] = to_attribute(value)
        return mark

    def arguments(self, **expressions: str) -> dict[str, Any]:
        """The request's arguments; an empty expression is left out."""
        told: dict[str, Any] = {name: text for name, text in expressions.items() if text}
        if told and self.names:
            told["ExpressionAttributeNames"] = self.names
        if told and self.values:
            told["ExpressionAttributeValues"] = self.values
        return told


Request = tuple[str, dict[str, Any]]
"""The name of a call, and its arguments."""


def asked(write: Write, policy: Policy | None) -> Request | None:
    """The write with all its conditions in one call. None: they are too long, see ``guarded``. Raises Refused."""
    words = Words()
    plain = _plain(write, policy)
    if write.operation is Operation.PUT:
        item = members({**plain, write.key: write.value})
        expressions = words.arguments(ConditionExpression=_condition(words, write, policy))
        return ("put_item", {"Item": item, **expressions}) if _fits(write, expressions) else None
    changes = {name: value for name, value in plain.items() if name != write.key}
    told = ", ".join(f"{words.name(name)} = {words.value(value)}" for name, value in changes.items())
    expressions = words.arguments(UpdateExpression=f"SET {told}", ConditionExpression=_condition(words, write, policy))
    key = {write.key: to_attribute(write.value)}
    request = {"Key": key, "ReturnValues": "ALL_NEW", **expressions}
    return ("update_item", request) if _fits(write, expressions) else None


def guarded(write: Write, policy: Policy | None, stored: Mapping[str, Any]) -> Request:
    """The write, under the condition that what ``judge`` has seen is still so. ``stored``: attribute values; or empty.

    Said in the table's older words, which are no expressions, so that nothing of it can be too long. An update changes
    its own members only, here too.
    """
    expected: dict[str, Any] = {}
    for name in watched(write):
        if name in stored:
            expected[name] = {"ComparisonOperator": "EQ", "AttributeValueList": [stored[name]]}
        else:
            expected[name] = {"Exists": False}
    plain = _plain(write, policy)
    if write.operation is Operation.PUT:
        return "put_item", {"Item": members({**plain, write.key: write.value}), "Expected": expected}
    changes = {name: value for name, value in plain.items() if name != write.key}
    return "update_item", {
        "Key": {write.key: to_attribute(write.value)},
        "AttributeUpdates": {name: {"Action": "PUT", "Value": value} for name, value in members(changes).items()},
        "Expected": expected,
        "ReturnValues": "ALL_NEW",
    }


def scan(machine: str, filters: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Scan's arguments: this machine's items that equal all filters. Raises Refused."""
    if len(filters) > _MOST_FILTERS:
        raise Refused(f"a scan takes {_MOST_FILTERS} filters at most")
    words = Words()
    deleted = words.name("deleted")
    parts = [
        f"{words.name(OWNER)} = {words.value(machine)}",
        f"(attribute_not_exists({deleted}) OR {deleted} <> {words.value(True)})",  # noqa: FBT003  # a value
    ]
    for one in filters:
        name, value = words.name(str(one["filter_key_name"])), one["filter_key_value"]
        if isinstance(value, float) and not math.isfinite(value):
            raise Refused(f"no item's {one['filter_key_name']} equals {value}: it is no number")
        wanted = [f"{name} = {words.value(meant)}" for meant in _meant(value)]
        parts.append(f"({' OR '.join(wanted)})")
    return words.arguments(FilterExpression=" AND ".join(parts))


def _plain(write: Write, policy: Policy | None) -> dict[str, Any]:
    marked = write.marked
    return marked if policy is not None else {name: one for name, one in marked.items() if name not in (SEQ, BY)}


def _condition(words: Words, write: Write, policy: Policy | None) -> str:
    """What ``judge`` says, for the cloud to say it at the moment of the write."""
    parts = []
    if not write.is_own_instance:
        owner = words.name(OWNER)
        ours = " OR ".join(f"{owner} = {words.value(one)}" for one in (write.machine, "", None))
        parts.append(f"(attribute_not_exists({owner}) OR {ours})")
    if policy is not None:
        parts.append(_by_number(words, write, policy))
    if write.condition is not None or write.operation is Operation.DELETE:
        parts.append(f"attribute_exists({words.name(write.key)})")
    for name, value in (write.condition or {}).items():
        member, attribute = words.name(name), words.value(value)
        equal = f"{member} = {attribute}"
        is_null = words.values[attribute] == {"NULL": True}
        parts.append(f"(attribute_not_exists({member}) OR {equal})" if is_null else equal)
    if write.needs_life:
        deleted = words.name("deleted")
        parts.append(f"(attribute_not_exists({deleted}) OR {deleted} <> {words.value(True)})")  # noqa: FBT003  # a value
    return " AND ".join(parts)


def _by_number(words: Words, write: Write, policy: Policy) -> str:
    number = words.name(SEQ)
    kind, seq = words.value("N"), words.value(write.seq)
    lower = f"attribute_not_exists({number}) OR NOT attribute_type({number}, {kind}) OR {number} < {seq}"
    if policy is Policy.LAST_WRITER:
        return f"({lower})"
    by, mine = words.name(BY), words.value(write.machine)
    if write.condition is None:
        return f"(attribute_not_exists({words.name(write.key)}) OR ({by} = {mine} AND ({lower})))"
    return f"(attribute_not_exists({by}) OR {by} <> {mine} OR {lower})"


def _fits(write: Write, expressions: Mapping[str, Any]) -> bool:
    longest = max((len(one) for one in expressions.values() if isinstance(one, str)), default=0)
    return longest <= _LONGEST and len(write.condition or ()) <= _MOST_CONDITIONS


def _meant(value: Any) -> list[Any]:
    """Programs write filter values as texts: "3" finds the number 3, too, and "true" finds true."""
    if not isinstance(value, str):
        return [value]
    try:
        other = json.loads(value)
        is_other = isinstance(other, bool | int | float) and to_attribute(other) != {"NULL": True}
    except (ValueError, RecursionError, Refused):  # a number that no item can have
        return [value]
    return [value, other] if is_other else [value]
