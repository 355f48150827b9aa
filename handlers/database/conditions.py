"""What DynamoDB is asked for: names and values stand outside of the expressions, so that no word is reserved."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from petalbus.handlers.database.errors import Refused
from petalbus.handlers.database.values import members, to_attribute
from petalbus.handlers.database.writes import BY, OWNER, SEQ, Operation, Policy, Write

_MOST_FILTERS: Final = 50


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


def put(write: Write, policy: Policy | None) -> dict[str, Any]:
    """PutItem's arguments."""
    words = Words()
    item = members({**_plain(write, policy), write.key: write.value})
    return {"Item": item, **words.arguments(ConditionExpression=_condition(words, write, policy))}


def update(write: Write, policy: Policy | None) -> dict[str, Any]:
    """UpdateItem's arguments; deleting is an update, too."""
    words = Words()
    changes = {name: value for name, value in _plain(write, policy).items() if name != write.key}
    told = ", ".join(f"{words.name(name)} = {words.value(value)}" for name, value in changes.items())
    condition = _condition(words, write, policy)
    key = {write.key: to_attribute(write.value)}
    expressions = words.arguments(UpdateExpression=f"SET {told}", ConditionExpression=condition)
    return {"Key": key, "ReturnValues": "ALL_NEW", **expressions}


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
        wanted = [words.value(meant) for meant in _meant(value)]
        parts.append(f"{name} IN ({', '.join(wanted)})")
    return words.arguments(FilterExpression=" AND ".join(parts))


def _plain(write: Write, policy: Policy | None) -> dict[str, Any]:
    marked = write.marked
    return marked if policy is not None else {name: one for name, one in marked.items() if name not in (SEQ, BY)}


def _condition(words: Words, write: Write, policy: Policy | None) -> str:
    """What ``judge`` says, for the cloud to say it at the moment of the write."""
    parts = []
    if not write.is_own_instance:
        owner = words.name(OWNER)
        parts.append(f"(attribute_not_exists({owner}) OR {owner} = {words.value(write.machine)})")
    if policy is not None:
        parts.append(_by_number(words, write, policy))
    if write.condition is not None or write.operation is Operation.DELETE:
        parts.append(f"attribute_exists({words.name(write.key)})")
    for name, value in (write.condition or {}).items():
        member, wanted = words.name(name), words.value(value)
        equal = f"{member} = {wanted}"
        parts.append(equal if value is not None else f"(attribute_not_exists({member}) OR {equal})")
    if write.operation is Operation.DELETE:
        deleted = words.name("deleted")
        parts.append(f"(attribute_not_exists({deleted}) OR {deleted} <> {words.value(True)})")  # noqa: FBT003  # a value
    return " AND ".join(parts)


def _by_number(words: Words, write: Write, policy: Policy) -> str:
    number, seq = words.name(SEQ), words.value(write.seq)
    if policy is Policy.LAST_WRITER:
        return f"(attribute_not_exists({number}) OR {number} < {seq})"
    by, mine = words.name(BY), words.value(write.machine)
    if write.condition is None:
        return f"(attribute_not_exists({words.name(write.key)}) OR ({by} = {mine} AND {number} < {seq}))"
    return f"(attribute_not_exists({by}) OR {by} <> {mine} OR {number} < {seq})"


def _meant(value: Any) -> list[Any]:
    """Programs write filter values as texts: "3" finds the number 3, too, and "true" finds true."""
    if not isinstance(value, str):
        return [value]
    try:
        other = json.loads(value)
    except ValueError:
        return [value]
    return [value, other] if isinstance(other, bool | int | float) else [value]
