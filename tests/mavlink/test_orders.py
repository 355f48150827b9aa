"""What a command record may ask for: checked before anything is sent, and refused with field and limit."""

from __future__ import annotations

from typing import Any

import pytest

from petalbus.handlers.mavlink.errors import OrderInvalid
from petalbus.handlers.mavlink.flight.orders import Order, Verb, order_from_command, order_from_emergency


@pytest.mark.parametrize(
    ("payload", "order"),
    [
        ({"command": "arm"}, Order(Verb.ARM)),
        ({"command": "disarm", "parameters": {}}, Order(Verb.DISARM)),
        ({"command": "land", "parameters": None}, Order(Verb.LAND)),
        ({"command": "takeoff", "parameters": {"altitude": 10}}, Order(Verb.TAKEOFF, 10.0)),
        ({"command": "takeoff", "altitude": 20}, Order(Verb.TAKEOFF, 20.0)),
        (
            {"command_id": "cmd_123", "command": "takeoff", "parameters": {"altitude": 20, "speed": 2.0}},
            Order(Verb.TAKEOFF, 20.0, "cmd_123", ("speed",)),
        ),
        (
            {"command_id": "emergency_001", "command": "emergency_stop", "parameters": {"immediate": True}},
            Order(Verb.EMERGENCY_STOP, None, "emergency_001", ("immediate",)),
        ),
        ({"command": "arm", "timestamp": 1.5, "anything": []}, Order(Verb.ARM)),
    ],
)
def test_commands_of_the_documents_are_understood(payload: dict[str, Any], order: Order) -> None:
    assert order_from_command(payload) == order
    assert order.urgent is (order.verb is Verb.EMERGENCY_STOP)


@pytest.mark.parametrize(
    ("payload", "field", "allowed"),
    [
        (None, "data", "a JSON object"),
        ([], "data", "a JSON object"),
        ({}, "command", "arm, disarm, takeoff, land, return, hold, goto, mode, motor_test, emergency_stop"),
        (
            {"command": "explode"},
            "command",
            "arm, disarm, takeoff, land, return, hold, goto, mode, motor_test, emergency_stop",
        ),
        ({"command": ["arm"]}, "command", "emergency_stop"),
        ({"command": "takeoff"}, "parameters.altitude", "0.5 to 500"),
        ({"command": "takeoff", "parameters": {"altitude": None}}, "parameters.altitude", "0.5 to 500"),
        ({"command": "takeoff", "parameters": {"altitude": 0}}, "parameters.altitude", "0.5 to 500"),
        ({"command": "takeoff", "parameters": {"altitude": 501}}, "parameters.altitude", "0.5 to 500"),
        ({"command": "takeoff", "parameters": {"altitude": -3}}, "parameters.altitude", "0.5 to 500"),
        ({"command": "takeoff", "parameters": {"altitude": float("nan")}}, "parameters.altitude", "0.5 to 500"),
        ({"command": "takeoff", "parameters": {"altitude": float("inf")}}, "parameters.altitude", "0.5 to 500"),
        ({"command": "takeoff", "parameters": {"altitude": "10"}}, "parameters.altitude", "0.5 to 500"),
        ({"command": "takeoff", "parameters": {"altitude": True}}, "parameters.altitude", "0.5 to 500"),
        ({"command": "takeoff", "altitude": 10**400}, "altitude", "0.5 to 500"),
        ({"command": "takeoff", "parameters": {"altitide": 10}}, "parameters.altitide", "altitude, speed"),
        ({"command": "takeoff", "parameters": {"altitude": 5, "speed": -1}}, "parameters.speed", "0.1 to 50"),
        ({"command": "arm", "parameters": {"force": True}}, "parameters.force", "no parameters for arm"),
        ({"command": "arm", "parameters": [1]}, "parameters", "a JSON object"),
        ({"command": "emergency_stop", "parameters": {"immediate": "yes"}}, "parameters.immediate", "true or false"),
        ({"command": "arm", "command_id": "x" * 200}, "command_id", "128 characters"),
        ({"command": "arm", "command_id": True}, "command_id", "128 characters"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_allowed(payload: Any, field: str, allowed: str) -> None:
    with pytest.raises(OrderInvalid) as caught:
        order_from_command(payload)
    assert caught.value.field == field
    assert allowed in caught.value.limit
    assert field in str(caught.value)
    assert caught.value.detail["allowed"] == caught.value.limit


def test_the_altitude_limit_is_a_setting() -> None:
    payload = {"command": "takeoff", "parameters": {"altitude": 60}}
    assert order_from_command(payload).altitude == 60
    with pytest.raises(OrderInvalid, match=r"0\.5 to 50 "):
        order_from_command(payload, max_altitude=50.0)


def test_emergency_commands() -> None:
    assert order_from_emergency({"action": "land_immediately"}) == Order(Verb.LAND)
    assert order_from_emergency({"action": "emergency_stop", "command_id": 7}) == Order(
        Verb.EMERGENCY_STOP, command_id=7
    )
    with pytest.raises(OrderInvalid, match="land_immediately, emergency_stop"):
        order_from_emergency({"action": "hover"})
    with pytest.raises(OrderInvalid, match="is missing"):
        order_from_emergency({})
