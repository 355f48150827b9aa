"""The base class, the decorators, and what is read from a started petal."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from petalbus.petals.actions import mqtt_actions, record_actions, route_actions
from petalbus.petals.base import Petal
from petalbus.petals.decorators import http_action, mqtt_action, on, websocket_action
from petalbus.petals.proxies.base import BaseProxy


class Shelf(BaseProxy):
    """A proxy that is ready when told."""

    async def start(self) -> None:
        self._set_ready(True)

    async def stop(self) -> None:
        self._set_ready(False, "stopped")


class Camera(Petal):
    name = "camera"
    version = "1.2.3"

    def get_required_proxies(self) -> list[str]:
        return ["redis"]

    def get_optional_proxies(self) -> list[str]:
        return ["cloud"]

    def startup(self) -> None:
        super().startup()

        async def late(topic: str, message: dict[str, Any]) -> None:
            """Made by startup."""

        late.__mqtt_action__ = {"command": "late", "cpu_heavy": True}  # type: ignore[attr-defined]  # petals write it so
        self.late_handler = late

    @property
    def broken(self) -> str:
        raise AssertionError("looking for actions must not run a petal's properties")

    @http_action("DELETE", "/photos/{number}", summary="Forget one", tags=["photos"])
    @http_action("POST", "/shoot", response_model=None)
    @mqtt_action("shoot")
    async def shoot(self, topic: str, message: dict[str, Any]) -> dict[str, bool]:
        return {"ok": True}

    @websocket_action("/live")
    async def live(self, websocket: Any) -> None:
        """A websocket."""

    @on("camera.shoot", priority=3, concurrency=None, key="lens", redelivery="rerun", timeout=2.0)
    @on("camera.burst")
    async def take(self, record: Any) -> None:
        """Two record types."""


def test_what_a_petal_declares() -> None:
    """S-012, S-014, S-015: names of hard and soft dependencies; a petal that declares nothing needs nothing."""
    assert Camera().get_required_proxies() == ["redis"]
    assert Camera().get_optional_proxies() == ["cloud"]
    assert Petal().get_required_proxies() == Petal().get_optional_proxies() == []


async def test_get_proxy_gives_none_while_it_is_unavailable() -> None:
    """S-016, S-080: absent, or there and not ready; the mapping given is live."""
    petal, shelf = Camera(), Shelf()
    assert petal.get_proxy("redis") is None
    proxies: dict[str, BaseProxy] = {}
    petal.inject_proxies(proxies)
    assert petal.get_proxy("redis") is None
    proxies["redis"] = shelf
    assert petal.get_proxy("redis") is None
    await shelf.start()
    assert petal.get_proxy("redis") is shelf
    await shelf.stop()
    assert petal.get_proxy("redis") is None
    assert petal._proxies.get("redis") is shelf


def test_actions_are_read_from_the_started_instance() -> None:
    """Stacked decorators all count, closures set by startup count, properties are not run."""
    petal = Camera()
    assert {action.command for action in mqtt_actions(petal)} == {"shoot"}
    petal.startup()
    assert {(action.command, action.cpu_heavy) for action in mqtt_actions(petal)} == {("shoot", False), ("late", True)}
    assert petal.has_mqtt_actions()
    assert not Petal().has_mqtt_actions()
    handlers, heavy = petal._collect_mqtt_actions()
    assert set(handlers) == {"camera/shoot", "camera/late"}
    assert heavy == {"camera/shoot": False, "camera/late": True}
    routes = {(one.protocol, one.method, one.path): one for one in route_actions(petal)}
    assert set(routes) == {
        ("http", "POST", "/shoot"),
        ("http", "DELETE", "/photos/{number}"),
        ("websocket", None, "/live"),
    }
    assert routes[("http", "DELETE", "/photos/{number}")].options == {"summary": "Forget one", "tags": ["photos"]}
    assert routes[("http", "POST", "/shoot")].function == petal.shoot


def test_record_actions_and_what_they_declare() -> None:
    """`on` can be stacked; the safe redelivery is the default."""
    found = {action.type: action.options for action in record_actions(Camera())}
    assert found["camera.shoot"] == {
        "priority": 3,
        "concurrency": None,
        "key": "lens",
        "redelivery": "rerun",
        "max_attempts": 5,
        "timeout": 2.0,
    }
    assert (found["camera.burst"]["redelivery"], found["camera.burst"]["concurrency"]) == ("report", 1)


@pytest.mark.parametrize(
    ("declare", "says"),
    [
        (lambda: http_action("FETCH", "/x"), "FETCH"),  # type: ignore[arg-type]
        (lambda: http_action("GET", "x"), "slash"),
        (lambda: websocket_action("x"), "slash"),
        (lambda: mqtt_action(""), "command"),
        (lambda: mqtt_action("/x"), "command"),
        (lambda: on("no good type"), "record type"),
        (lambda: on("x", timeout=0), "timeout"),
    ],
)
def test_a_wrong_declaration_says_what_is_wrong(declare: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        declare()


def test_a_petal_that_forgets_super_init_still_works() -> None:
    """Petals' own constructors do not always call ours."""

    class Forgetful(Petal):
        name = "forgetful"

        def __init__(self) -> None:
            self.ready = True

    petal = Forgetful()
    assert petal.get_proxy("redis") is None
    assert petal.logger.name == "petal.forgetful"
    with pytest.raises(RuntimeError, match="startup"):
        petal.bus  # noqa: B018  # reading it is the test
    own = logging.getLogger("own")
    petal.logger = own
    assert petal.logger is own
