"""One write to a table, and whether it may be done to the item that is there: pure logic.

A write bears a number that grows on a vehicle (see ``numbers``). The item keeps the number and the machine of its last
write, so a repetition is seen, and so is what somebody else has written since.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final

from petalbus.handlers.database import values
from petalbus.handlers.database.errors import Conflict, Deleted, Denied, NotThere, Refused

Item = dict[str, Any]

OWNER: Final = "robot_instance_id"
INSTANCES: Final = "config-robot_instances"
SEQ: Final = "_petalbus_seq"
BY: Final = "_petalbus_by"
MAX_NAME: Final = 1024
MAX_NUMBER: Final = 2**63 - 1


class Operation(StrEnum):
    """``put``: the item whole; ``update``: members of it; ``delete``: mark it."""

    PUT = "put"
    UPDATE = "update"
    DELETE = "delete"


class Policy(StrEnum):
    """What is done about an item that somebody else has written: the later one wins, or ours is refused."""

    LAST_WRITER = "last-writer"
    REFUSE = "refuse"


class Verdict(StrEnum):
    """``repeated``: it was done before. ``superseded``: the item has a later write."""

    APPLY = "apply"
    REPEATED = "repeated"
    SUPERSEDED = "superseded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """``data``: members; the key may be one of them. ``condition``: members that the item must have, else Conflict."""

    machine: str
    table: str
    key: str
    value: str
    operation: Operation
    data: Mapping[str, Any]
    seq: int = 0
    condition: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, told: Any, *, machine: str, seq: int) -> Write:
        """From a record's payload. ``seq``: its number where it has none. Raises Refused, and Denied for a machine's
        write that is not this one ("": any).
        """
        if not isinstance(told, Mapping):
            raise Refused("a write must be an object with table, key, operation and item")
        named = told.get("key")
        if not isinstance(named, Mapping) or len(named) != 1:
            raise Refused('key must be an object with one member: {"id": "1"}')
        ((key, value),) = named.items()
        table = told.get("table")
        for what, word in (("table", table), ("the key's name", key), ("the key's value", value)):
            if not isinstance(word, str) or not word or len(word) > MAX_NAME:
                raise Refused(f"{what} must be a text of 1 to {MAX_NAME} characters, not {word!r:.80}")
        try:
            operation = Operation(str(told.get("operation")))
        except ValueError:
            raise Refused(f"operation {told.get('operation')!r} must be put, update or delete") from None
        item, condition = told.get("item") or {}, told.get("condition")
        if not isinstance(item, Mapping) or not isinstance(condition, Mapping | None):
            raise Refused("item and condition must be objects")
        if told.get("typed"):
            item = values.members_from_wire(item)
            condition = None if condition is None else values.members_from_wire(condition)
        number, whose = told.get("seq", seq), told.get("machine")
        if not isinstance(number, int) or isinstance(number, bool) or not 0 < number <= MAX_NUMBER:
            raise Refused(f"seq must be a positive whole number, not {number!r:.80}")
        if whose is not None and machine and whose != machine:
            raise Denied(f"it is a write of machine {whose!r:.80}, and this is {machine!r}")
        return cls(
            machine=machine,
            table=str(table),
            key=key,
            value=value,
            operation=operation,
            data=_members(item, key, value),
            seq=number,
            condition=condition,
        )

    @property
    def marked(self) -> Item:
        """The members to be written, with ours."""
        deleted = {"deleted": True} if self.operation is Operation.DELETE else {}
        return {**self.data, **deleted, OWNER: self.machine, SEQ: self.seq, BY: self.machine}

    @property
    def needs_life(self) -> bool:
        """A deleted item cannot be deleted, nor changed by an update that does not say what becomes of ``deleted``."""
        return self.operation is Operation.DELETE or (self.operation is Operation.UPDATE and "deleted" not in self.data)

    @property
    def is_own_instance(self) -> bool:
        """The item of this machine itself is ours whoever made it."""
        return self.table == INSTANCES and self.value == self.machine

    def __str__(self) -> str:
        return f"{self.operation} of {self.key} = {self.value!r} in {self.table!r}"


def judge(stored: Mapping[str, Any] | None, write: Write, policy: Policy | None) -> Verdict:
    """Whether a write may be done to what is stored. No policy: numbers do not count.

    What it looks at are ``watched``'s members. Raises Denied, Conflict, NotThere, Deleted.
    """
    if not stored:
        if write.condition is not None:
            raise Conflict(f"{write}: there is no such item, so its condition does not hold")
        if write.operation is Operation.DELETE:
            raise NotThere(missing(write.table, write.key, write.value))
        return Verdict.APPLY
    if stored.get(OWNER) not in (None, "", write.machine) and not write.is_own_instance:
        raise Denied(f"{write}: the item belongs to another machine")
    if policy is not None and (verdict := _by_number(stored, write, policy)) is not Verdict.APPLY:
        return verdict
    if write.condition is not None:
        wrong = sorted(name for name, value in write.condition.items() if not values.same(stored.get(name), value))
        if wrong:
            raise Conflict(f"{write}: its condition does not hold: {', '.join(wrong)}")
    if stored.get("deleted") is True and write.needs_life:
        if write.operation is Operation.DELETE:
            raise NotThere(missing(write.table, write.key, write.value))
        raise Deleted(f"{write}: the item was deleted; writing it whole makes it anew")
    return Verdict.APPLY


def watched(write: Write) -> tuple[str, ...]:
    """The members that ``judge`` looks at, the key first: while they stay as they are, so does what it says."""
    return tuple(dict.fromkeys((write.key, OWNER, SEQ, BY, "deleted", *(write.condition or ()))))


def _by_number(stored: Mapping[str, Any], write: Write, policy: Policy) -> Verdict:
    told, by = stored.get(SEQ), stored.get(BY)
    number = told if isinstance(told, int | float | Decimal) and not isinstance(told, bool) else None
    ours = by == write.machine
    if ours and number == write.seq:
        return Verdict.REPEATED
    if policy is Policy.REFUSE and not ours and write.condition is None:
        raise Conflict(f"{write}: it was last written by {by or 'another program'}, and the table's policy is refuse")
    counts = ours or policy is Policy.LAST_WRITER
    if counts and number is not None and number >= write.seq:
        return Verdict.SUPERSEDED
    return Verdict.APPLY


def shown(item: Mapping[str, Any]) -> Item:
    """An item without our marks."""
    return {name: value for name, value in item.items() if name not in (SEQ, BY)}


def is_ours(item: Mapping[str, Any], machine: str, table: str, value: str) -> bool:
    """Whether this machine may see it, and it was not deleted."""
    if not item or item.get("deleted") is True:
        return False
    return item.get(OWNER) == machine or (table == INSTANCES and value == machine)


def missing(table: str, key: str, value: str) -> str:
    """What is said of an item that is not there."""
    return f"there is no item {key} = {value!r} in {table!r}"


def _members(item: Mapping[str, Any], key: str, value: str) -> Item:
    if item.get(key, value) != value:
        raise Refused(f"item says {key} = {item[key]!r:.80}, and its key {value!r}: they must agree")
    return {name: member for name, member in item.items() if name not in (SEQ, BY)}
