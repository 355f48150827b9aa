"""The bulk transfer alone, in virtual time, against a vehicle behind a wire that loses, repeats and delays."""

from __future__ import annotations

import heapq
import itertools
import random
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from petalbus.handlers.mavlink.params.round_trip import RoundTrip
from petalbus.handlers.mavlink.params.transfer import Item, Limits, Outgoing, Remote, Transfer
from petalbus.handlers.mavlink.params.values import (
    PARAM_SET_ID,
    ParamEncoding,
    ParamError,
    ParamType,
    ParamValue,
    decode_value,
    encode_value,
    unpack_param_set,
)

REAL32, INT32 = ParamType.REAL32, ParamType.INT32


class Wire:
    """A vehicle with PX4's ways at the end of a bad wire; time passes only here."""

    def __init__(self, names: list[str], *, seed: int, loss: float, repeat: float, jitter: float) -> None:
        self.values = {name: ParamValue(name, struct.pack("<i", 5), INT32, at, 99) for at, name in enumerate(names)}
        self.floats = {name for at, name in enumerate(names) if at % 3 == 0}
        for name in self.floats:
            self.values[name] = self.values[name]._replace(raw=struct.pack("<f", 5.0), param_type=REAL32)
        self.now = 0.0
        self.most_flying = 0
        self._rng = random.Random(seed)
        self._loss, self._repeat, self._jitter = loss, repeat, jitter
        self._events: list[tuple[float, int, Callable[[], Any]]] = []
        self._numbers = itertools.count()

    def run(self, transfer: Transfer, limits: Limits, *, timeout: float) -> None:
        while not transfer.finished and self.now < timeout:
            for one in transfer.poll(self.now):
                self._carry(self._arrives, one, transfer)
            self.most_flying = max(self.most_flying, len(transfer._flying))
            assert len(transfer._flying) <= limits.window
            due = min(transfer.next_due(self.now), timeout)
            if self._events and self._events[0][0] <= due:
                self.now, _, action = heapq.heappop(self._events)
                action()
            else:
                assert due > self.now or transfer.poll(self.now) or transfer.finished, "it must not spin"
                self.now = max(self.now, due)
        transfer.give_up()

    def _carry(self, action: Callable[..., Any], *args: Any) -> None:
        if self._rng.random() < self._loss:
            return
        for _ in range(1 + (self._rng.random() < self._repeat)):
            at = self.now + 0.01 + self._rng.random() * self._jitter
            heapq.heappush(self._events, (at, next(self._numbers), lambda: action(*args)))

    def _arrives(self, one: Outgoing, transfer: Transfer) -> None:
        if one.msgid != PARAM_SET_ID:
            position, _, _, name = struct.unpack("<hBB16s", one.payload)
            text = name.rstrip(b"\0").decode()
            if position >= 0:
                text = next((key for key, value in self.values.items() if value.position == position), "")
            self._answer(text, transfer)
            return
        wanted, _, _ = unpack_param_set(one.payload)
        known = self.values.get(wanted.name)
        if known is not None and wanted.param_type != known.param_type:
            self._carry(lambda: transfer.on_error(wanted.name, ParamError.TYPE_MISMATCH, self.now))
            return
        if known is not None:
            self.values[wanted.name] = known._replace(raw=wanted.raw)
        self._answer(wanted.name, transfer)

    def _answer(self, name: str, transfer: Transfer) -> None:
        value = self.values.get(name)
        if value is None:
            self._carry(lambda: transfer.on_error(name, ParamError.DOES_NOT_EXIST, self.now))
        else:
            self._carry(lambda: transfer.on_value(value, self.now))


def remote() -> Remote:
    return Remote(system=1, encoding=ParamEncoding.BYTEWISE)


WIRES = {
    "seed": st.integers(0, 10_000),
    "loss": st.sampled_from([0.0, 0.1, 0.3, 0.5]),
    "repeat": st.sampled_from([0.0, 0.3]),
    "jitter": st.sampled_from([0.0, 0.05]),
}


@given(wire=st.fixed_dictionaries(WIRES), number=st.integers(1, 40), window=st.integers(1, 20))
def test_every_name_has_an_outcome_and_it_is_true(wire: dict[str, Any], number: int, window: int) -> None:
    """Set as another type than it has, as its own, or without one: confirmed with that value, or refused."""
    names = [f"P{index}" for index in range(number)]
    vehicle = Wire(names, **wire)
    limits = Limits(window=window, resend=0.5, retries=60)
    kinds = [None, INT32, REAL32]
    items = [Item(name, value=index, kind=kinds[index % 3]) for index, name in enumerate([*names, "MISSING"])]
    transfer = Transfer(items, remote=remote(), limits=limits)
    vehicle.run(transfer, limits, timeout=600.0)
    assert transfer.finished
    assert set(transfer.values) == set(names), transfer.refusals
    assert transfer.refusals["MISSING"].code in ("DOES_NOT_EXIST", "NOT_ANSWERED")
    for index, name in enumerate(names):
        value = transfer.values[name]
        assert decode_value(value.raw, value.param_type, ParamEncoding.BYTEWISE) == index
        assert vehicle.values[name].raw == value.raw, "what is confirmed is what the vehicle has"


@given(wire=st.fixed_dictionaries(WIRES), number=st.integers(1, 60))
def test_reading_by_name_and_by_position(wire: dict[str, Any], number: int) -> None:
    names = [f"P{index}" for index in range(number)]
    for keys in (names, list(range(number))):
        vehicle = Wire(names, **wire)
        limits = Limits(window=10, resend=0.5, retries=60)
        transfer = Transfer(map(Item, keys), remote=remote(), limits=limits)
        vehicle.run(transfer, limits, timeout=600.0)
        assert set(transfer.values) == set(keys), transfer.refusals
        assert [transfer.values[key].name for key in keys] == names


def test_a_perfect_wire_needs_one_message_each_and_one_round_trip_a_window() -> None:
    names = [f"P{index}" for index in range(100)]
    vehicle = Wire(names, seed=1, loss=0.0, repeat=0.0, jitter=0.0)
    limits = Limits(window=20)
    transfer = Transfer(map(Item, names), remote=remote(), limits=limits)
    vehicle.run(transfer, limits, timeout=60.0)
    assert transfer.sent == 100
    assert vehicle.now == pytest.approx(5 * 0.02)
    assert vehicle.most_flying == 20


@pytest.mark.parametrize(("loss", "at_most_s", "sends"), [(0.05, 0.2, 1.3), (0.2, 0.4, 2.0), (0.5, 1.1, 5.5)])
def test_loss_costs_little_more_than_it_must(loss: float, at_most_s: float, sends: float) -> None:
    """100 parameters, window 20, 20 ms round trip: the median of 21 wires. The least possible: 0.13, 0.20, 0.62 s."""
    names = [f"P{index}" for index in range(100)]
    took, sent = [], []
    for seed in range(21):
        vehicle = Wire(names, seed=seed, loss=loss, repeat=0.0, jitter=0.0)
        limits = Limits(window=20, resend=0.7, retries=20)
        transfer = Transfer(map(Item, names), remote=remote(), limits=limits)
        vehicle.run(transfer, limits, timeout=60.0)
        assert not transfer.refusals
        took.append(vehicle.now)
        sent.append(transfer.sent / 100)
    assert sorted(took)[10] < at_most_s
    assert sorted(sent)[10] < sends


def test_messages_are_spaced() -> None:
    names = [f"P{index}" for index in range(10)]
    vehicle = Wire(names, seed=1, loss=0.0, repeat=0.0, jitter=0.0)
    limits = Limits(window=10, spacing=0.1)
    transfer = Transfer(map(Item, names), remote=remote(), limits=limits)
    assert len(transfer.poll(0.0)) == 1
    assert transfer.next_due(0.0) == pytest.approx(0.1)
    vehicle.now = 0.1
    vehicle.run(transfer, limits, timeout=60.0)
    assert vehicle.now >= 0.9


def test_reordering_is_noticed_and_taken_for_no_loss() -> None:
    """An answer that comes right after its question was repeated is the first one's: nothing is hurried then."""
    transfer = Transfer(map(Item, ["A", "B", "C"]), remote=remote(), limits=Limits(window=3))
    assert len(transfer.poll(0.0)) == 3
    transfer.on_value(ParamValue("B", b"\0" * 4, INT32), 0.1)
    assert len(transfer.poll(0.1)) == 1, "A must be lost, since B was answered"
    transfer.on_value(ParamValue("A", b"\0" * 4, INT32), 0.11)
    assert transfer._reordered
    transfer.on_value(ParamValue("C", b"\0" * 4, INT32), 0.12)
    assert transfer.finished
    assert transfer.sent == 4


def test_the_patience_follows_the_round_trip() -> None:
    trip = RoundTrip()
    assert trip.patience(0.7) == 0.7
    for _ in range(50):
        trip.sample(0.1)
    assert trip.patience(0.7) == pytest.approx(0.125, abs=0.02)
    trip.sample(0.4)
    assert trip.patience(0.7) > 0.3
    assert trip.patience(0.2) == 0.2


def test_bytes_that_a_float_would_change() -> None:
    raw = encode_value(-5000000, INT32, ParamEncoding.BYTEWISE)
    limits = Limits()
    transfer = Transfer([Item("ID", value=-5000000, kind=INT32)], remote=remote(), limits=limits)
    [out] = transfer.poll(0.0)
    assert unpack_param_set(out.payload)[0].raw == raw
    transfer.on_value(ParamValue("ID", raw, INT32), 0.1)
    assert transfer.finished
    assert not transfer.refusals


def test_a_vehicle_that_insists_on_another_value_is_reported_soon() -> None:
    """Not after all retries: three sendings that bring the same other value are its answer. Within half a second."""
    to = Remote(system=1, encoding=ParamEncoding.C_CAST)
    transfer = Transfer([Item("P0", value=2.5, kind=REAL32)], remote=to, limits=Limits(resend=1.0, retries=20))
    kept = ParamValue("P0", struct.pack("<f", 2.0), INT32, 0, 1)
    now, sent = 0.0, 0
    while True:
        out = transfer.poll(now)
        sent += len(out)
        if out:
            now += 0.02
            transfer.on_value(kept, now)
        if transfer.finished:
            break
        now = max(now, transfer.next_due(now))
    assert transfer.refusals["P0"].code == "VALUE_DIFFERS"
    assert sent == 3
    assert now < 0.5


def test_the_last_ones_are_repeated_early_where_messages_get_lost() -> None:
    """And never beyond the share that is to spare."""
    to = remote()
    limits = Limits(window=10, resend=1.0, retries=50)
    names = [f"P{at}" for at in range(100)]
    vehicle = Wire(names, seed=3, loss=0.2, repeat=0.0, jitter=0.0)
    transfer = Transfer(map(Item, names), remote=to, limits=limits)
    vehicle.run(transfer, limits, timeout=60.0)
    assert len(transfer.values) == 100
    assert 0 < transfer._early <= 0.09 * transfer.sent + 1
    calm = Wire(names, seed=3, loss=0.0, repeat=0.0, jitter=0.0)
    transfer = Transfer(map(Item, names), remote=to, limits=limits)
    calm.run(transfer, limits, timeout=60.0)
    assert transfer.sent == 100
