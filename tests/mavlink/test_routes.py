"""The rules by which a way to a vehicle is chosen, kept and left, with a clock of the test's own."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymavlink.dialects.v20 import all as mavlink

from mavlink.peer import ARM_DISARM
from petalbus.handlers.mavlink.wire.dialect import Packer, load_dialect
from petalbus.handlers.mavlink.wire.framing import Frame, build_frame
from petalbus.handlers.mavlink.wire.routes import LATELY_S, SILENT_S, Routes, component_meant

DIALECT = load_dialect()
FORCE = 21196
CAMERA = 100
ROI_NONE = mavlink.MAV_CMD_DO_SET_ROI_NONE


def order(number: int = ROI_NONE, *, system: int = 1, component: int = 1, **more: Any) -> Any:
    to = {"target_system": system, "target_component": component}
    return DIALECT.message("COMMAND_LONG", command=number, **to, **more)


STOP = order(ARM_DISARM, param1=0, param2=FORCE)
SETPOINT = DIALECT.message("SET_ATTITUDE_TARGET", target_system=1, target_component=1)


A, B, C = ("a", 1), ("b", 2), ("c", 3)


class Sky:
    """Who is heard where, and what is asked of whom."""

    def __init__(self) -> None:
        self.now = 100.0
        self.routes = Routes(system=2, component=140)
        self._packer = Packer(DIALECT, system=2, component=140)

    def hear(self, *places: Any, system: int = 1, component: int = 1, wait: float = 0.0) -> None:
        self.now += wait
        for place in places:
            self.routes.heard_at(place)[bytes((system, component))] = self.now

    def to(self, message: Any = None, *, system: int = 1) -> list[Any]:
        data = self._packer.pack(message or order(system=system))
        component = component_meant(data, system, DIALECT.target_places(Frame.from_raw(data).msgid))
        return self.routes.to(system, component, data, self.now)

    def answer(self, number: int = ROI_NONE, *, component: int = 1, **to: int) -> None:
        ack = DIALECT.message("COMMAND_ACK", command=number, **{"target_system": 2, "target_component": 140} | to)
        self.routes.look([Frame.from_raw(Packer(DIALECT, system=1, component=component).pack(ack))])


@pytest.fixture(name="sky")
def _sky() -> Sky:
    return Sky()


def test_the_way_stays_until_it_is_silent_for_longer_than_a_moment(sky: Sky) -> None:
    assert sky.to(SETPOINT) == []
    sky.hear(A, B)
    assert sky.to(SETPOINT) == [A]
    sky.hear(B, wait=SILENT_S)
    assert sky.to(SETPOINT) == [A]
    sky.hear(B, wait=0.1)
    assert sky.to(SETPOINT) == [B]
    sky.hear(A, B, wait=0.1)
    assert sky.to(SETPOINT) == [B], "and it does not go back"
    sky.now += 1000
    assert sky.to(SETPOINT) == [B], "where all is silent it stays"
    sky.routes.forget(B)
    assert sky.to(SETPOINT) == [A]


def test_each_component_has_a_way_of_its_own(sky: Sky) -> None:
    sky.hear(B, component=CAMERA)
    assert sky.to() == [B], "the companion may lead to the autopilot"
    sky.hear(A)
    assert sky.to() == [A]
    assert sky.to(order(component=CAMERA)) == [B]
    assert sky.to(order(component=154)) == [A], "the autopilot may lead to a gimbal that was never heard"
    assert sky.to(DIALECT.message("SET_MODE", target_system=1)) == [A], "it names no component"
    assert sky.to(DIALECT.message("TIMESYNC")) == [A]
    assert sky.to(order(component=0)) == [A, B]
    sky.hear(B)
    assert sky.to(order(component=0)) == [A], "where the autopilot is heard it would get it twice"
    assert sky.to(system=9) == []


def test_each_vehicle_has_a_way_of_its_own(sky: Sky) -> None:
    sky.hear(A, system=1)
    sky.hear(B, system=2)
    assert [sky.to(system=1), sky.to(system=2)] == [[A], [B]]
    sky.hear(B, system=1)
    sky.hear(A, system=2)
    assert [sky.to(system=1), sky.to(system=2)] == [[A], [B]]
    sky.hear(B, system=1, wait=SILENT_S + 0.1)
    assert [sky.to(system=1), sky.to(system=2)] == [[B], [B]]


def test_a_stop_goes_wherever_the_vehicle_was_heard_lately_also_when_it_fell_silent(sky: Sky) -> None:
    """S-003."""
    sky.hear(C)
    sky.hear(A, wait=LATELY_S + 0.1)
    sky.hear(B, component=CAMERA, wait=1.0)
    for _ in range(2):
        assert sky.to(STOP) == [A, B]
        sky.now += 1000
    assert sky.to() == [A]
    sky.hear(B, component=CAMERA)
    assert sky.to(STOP) == [A, B], "a companion that goes on does not make the autopilot's last way forgotten"


def test_a_stop_also_takes_the_way_that_is_known_to_lead_there(sky: Sky) -> None:
    """S-003: the radio fades for some seconds; a mere copy of the vehicle's stream goes on, and takes nothing."""
    sky.hear(A)
    sky.to()
    sky.answer()
    for _ in range(3):
        sky.hear(B, wait=LATELY_S + 1.0)
        assert set(sky.to(STOP)) == {A, B}
    assert sky.to() == [B], "an ordinary command takes one way"
    assert set(sky.to(STOP)) == {A, B}, "it answered once"
    sky.hear(C, wait=LATELY_S + 1.0)
    assert set(sky.to(STOP)) == {A, B, C}, "the one that is chosen now, too"
    sky.routes.forget(A)
    sky.routes.forget(B)
    assert sky.to(STOP) == [C]


def test_a_way_on_which_no_command_is_answered_is_left(sky: Sky) -> None:
    sky.hear(A, B)
    assert sky.to() == [A]
    sky.hear(A, B, wait=1.0)
    assert sky.to() == [A], "it had not much time"
    sky.hear(A, B, wait=2.0)
    assert sky.to() == [B]
    sky.answer()
    for _ in range(2):
        sky.hear(A, B, wait=10.0)
        assert sky.to() == [B], "that it answered speaks for it: one loss does not make it leave"
    sky.hear(A, B, wait=1.0)
    assert sky.to() == [B]
    assert sky.to() == [A], "but three do"


def test_of_three_ways_each_has_its_turn(sky: Sky) -> None:
    ways = []
    for _ in range(4):
        sky.hear(A, B, C, wait=3.0)
        ways += sky.to()
    assert ways == [A, B, C, A]


@pytest.mark.parametrize(
    "answer",
    [
        {"number": mavlink.MAV_CMD_DO_REPOSITION},
        {"target_system": 255},
        {"target_component": 191},
        {"component": CAMERA},
    ],
    ids=["to another command", "to another system", "to another component", "by another"],
)
def test_what_answers_somebody_else_proves_nothing(sky: Sky, answer: dict[str, int]) -> None:
    sky.hear(A, B)
    assert sky.to() == [A]
    sky.answer(**answer)
    sky.hear(A, B, wait=3.0)
    assert sky.to() == [B]


def test_an_old_answer_names_nobody_and_counts(sky: Sky) -> None:
    sky.hear(A, B)
    assert sky.to() == [A]
    sky.answer(target_system=0, target_component=0)
    sky.hear(A, B, wait=3.0)
    assert sky.to() == [A]


def test_a_proven_way_is_taken_again_when_the_other_one_is_not_proven(sky: Sky) -> None:
    """The other one may be a copy; else a lost wire would hand the vehicle over to it for ever."""
    sky.hear(A)
    assert sky.to() == [A]
    sky.answer()
    sky.hear(B, wait=2.0)
    assert sky.to() == [B]
    sky.hear(A)
    assert sky.to() == [A]
    sky.hear(B, wait=2.0)
    assert sky.to() == [B]
    sky.answer()
    sky.hear(A)
    assert sky.to() == [B], "now both are"


def test_what_is_said_on_all_ways_and_through_others_proves_and_disproves_nothing(sky: Sky) -> None:
    sky.hear(A, B)
    for message in (STOP, order(component=154)) * 5:
        sky.hear(A, B, wait=1.0)
        sky.to(message)
    assert sky.to() == [A]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["hear", "order", "stop", "all", "answer", "forget"]),
            st.sampled_from([A, B, C]),
            st.sampled_from([1, CAMERA]),
            st.floats(0.0, 4.0),
        ),
        max_size=60,
    )
)
def test_a_way_always_leads_where_the_vehicle_was_heard(steps: list[tuple[str, Any, int, float]]) -> None:
    sky = Sky()
    places: dict[Any, float] = {}
    for what, place, component, wait in steps:
        sky.now += wait
        if what == "hear":
            sky.hear(place, component=component)
            places[place] = sky.now
        elif what == "forget":
            sky.routes.forget(place)
            places.pop(place, None)
        elif what == "answer":
            sky.answer(component=component)
        else:
            message = STOP if what == "stop" else order(component=component if what == "order" else 0)
            ways = sky.to(message)
            assert bool(ways) == bool(places)
            assert len(set(ways)) == len(ways) <= (1 if what == "order" else len(places))
            assert set(ways) <= set(places)


@pytest.mark.parametrize("version", [1, 2])
def test_who_is_meant_is_read_from_every_message_that_says_so(version: int) -> None:
    packer = Packer(DIALECT, system=2, component=140, version=version)
    looked_at = 0
    for name, msgid in DIALECT.ids.items():
        fields = DIALECT._classes[msgid].fieldnames
        if "target_component" not in fields or (version == 1 and msgid > 255):
            continue
        message = DIALECT.message(
            name, target_component=154, **{"target_system": 7} if "target_system" in fields else {}
        )
        data = packer.pack(message)
        if version == 1 and DIALECT.target_places(msgid)[1] >= data[1]:  # type: ignore[operator]  # it has one
            continue  # an extension of MAVLink 2
        assert component_meant(data, 7, DIALECT.target_places(msgid)) == 154, name
        looked_at += 1
    assert looked_at > 40


def test_a_message_that_the_dialect_lacks_goes_the_autopilots_way() -> None:
    data = build_frame(0xABCDEF, os.urandom(20), crc_extra=1, sysid=2, compid=140, seq=0)
    assert component_meant(data, 1, DIALECT.target_places(0xABCDEF)) == 1
