"""JSON of what petals return, as bytes."""

from __future__ import annotations

import asyncio
import json as standard
import math
from collections import namedtuple
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from petalbus.daemon.http import json


class Color(Enum):
    RED = "red"


class Old:
    """An object that is only its members."""

    def __init__(self) -> None:
        self.a = 1
        self._hidden = 2


Pair = namedtuple("Pair", "a b")  # noqa: PYI024  # as old petals write it


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (math.nan, "null"),
        ([math.inf, -math.inf, -0.0], "[null,null,-0.0]"),
        ({1: {None: True, 2.5: "x", Color.RED: 1}}, '{"1":{"null":true,"2.5":"x","red":1}}'),
        (1 << 70, str(1 << 70)),
        ([1 << 70, math.nan, "é"], f'[{1 << 70},null,"\\u00e9"]'),
        ("\ud800", '"\\ud800"'),
        (Pair(1, math.nan), "[1,null]"),
        ([Decimal("1.50"), Decimal(7), Decimal("NaN")], "[1.5,7,null]"),
        (UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (Old(), '{"a":1}'),
        (np.float64("nan"), "null"),
        (np.bool_(True), "true"),
        (np.arange(4).reshape(2, 2)[:, 1], "[1,3]"),
        ({np.int64(3): np.array([1.5])}, '{"3":[1.5]}'),
    ],
)
def test_values(value: Any, text: str) -> None:
    assert json.encode(value).decode() == text


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": [0, {"b": b"xyz"}]}, r"\$\.a\[1\]\.b is 3 bytes, which JSON cannot hold"),
        ({"f": len}, r"\$\.f is a builtin_function_or_method"),
        ({(1, 2): 3}, r"\$ has the key \(1, 2\), a tuple"),
    ],
)
def test_what_cannot_be_written_is_named(value: Any, words: str) -> None:
    with pytest.raises(json.Unencodable, match=words):
        json.encode(value)


def test_a_value_that_contains_itself_is_an_error_and_no_crash() -> None:
    itself: list[Any] = []
    itself.append(itself)
    with pytest.raises(json.Unencodable, match="contains itself"):
        json.encode(itself)
    many: dict[str, Any] = {"rows": list(range(10_000))}
    many["me"] = many
    with pytest.raises(json.Unencodable, match="contains itself"):
        asyncio.run(json.encode_large(many))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)


@given(VALUES)
def test_every_json_value_survives_but_for_nan(value: Any) -> None:
    assert standard.loads(json.encode(value)) == _nulled(value)


@given(st.lists(VALUES, max_size=5), st.integers(1, 3))
def test_in_pieces_it_is_the_same(values: list[Any], times: int) -> None:
    """Small values are repeated until they are large."""
    large = {"rows": values * 200 * times, "one": values, "text": "x" * 400_000}
    assert asyncio.run(json.encode_large(large)) == json.encode(large)


def _nulled(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_nulled(member) for member in value]
    return {key: _nulled(member) for key, member in value.items()} if isinstance(value, dict) else value
