"""Acknowledgements carry no number: one of an earlier list must not be taken for that of the list under way."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from pymavlink.dialects.v20 import all as mavlink

from mavlink.peer import PX4 as PX4_NUMBER
from mavlink.peer import Peer
from mavlink.some_missions import mission, places
from petalbus.handlers.mavlink.missions.client import MissionDiffers
from petalbus.handlers.mavlink.missions.items import MissionItem
from petalbus.handlers.mavlink.missions.list_ids import ListIds
from petalbus.handlers.mavlink.wire.dialect import Packer, load_dialect

ITEMS = 4
PACKER = Packer(load_dialect(), system=1, component=1)


class Vehicle:
    """PX4 as the test plays it; from the second list on it acknowledges the first one again, ``when``."""

    def __init__(self, when: str) -> None:
        self.when = when
        self.kept: list[Any] = []
        self.counted = 0
        self.list_id = 0
        self.lists = 0
        self._coming: list[Any] = []
        self._expected = 0

    def __call__(self, peer: Peer, message: Any) -> None:
        kind = message.get_type()
        if kind == "MISSION_COUNT":
            if not self._coming and not self._expected:
                self.lists += 1
            self._coming, self._expected = [], message.count
            self.ask(peer)
        elif kind == "MISSION_ITEM_INT" and self._expected and message.seq == len(self._coming):
            self._take(peer, message)
        elif kind == "MISSION_REQUEST_LIST":
            self._expected = 0
            self.counted += 1
            peer.send_bytes(self.count())
        elif kind == "MISSION_REQUEST_INT" and message.seq < len(self.kept):
            kept = self.kept[message.seq]
            fields = {name: getattr(kept, name) for name in kept.get_fieldnames()}
            fields.update(target_system=2, target_component=140)
            peer.send(mavlink.MAVLink_mission_item_int_message(**fields))

    def _take(self, peer: Peer, message: Any) -> None:
        again = self.lists > 1
        self._coming.append(message)
        if len(self._coming) == self._expected:
            if again and self.when == "instead":
                peer.send_bytes(self.ack())  # and it goes on waiting for the last item, which it lost
                self._coming.pop()
                return
            self.kept, self.list_id, self._coming, self._expected = self._coming, 1000 + self.lists, [], 0
            peer.send_bytes(self.ack())
            return
        if again and self.when == "in the middle":
            peer.send_bytes(self.ack())
        self.ask(peer)

    def ask(self, peer: Peer) -> None:
        peer.send(mavlink.MAVLink_mission_request_int_message(2, 140, len(self._coming)))

    def ack(self) -> bytes:
        """Accepted, with the id of the list that it has."""
        return PACKER.pack_payload(47, struct.pack("<BBBBI", 2, 140, 0, 0, self.list_id))

    def count(self) -> bytes:
        return PACKER.pack_payload(44, struct.pack("<HBBBI", len(self.kept), 2, 140, 0, self.list_id))


def sent(vehicle: Vehicle) -> list[tuple[int, ...]]:
    return [(each.seq, each.command, each.x, each.y) for each in vehicle.kept]


@pytest.fixture
async def played(open_ground: Callable[..., Any], open_peer: Callable[..., Any]) -> Callable[..., Any]:
    async def connect(when: str) -> Any:
        vehicle = Vehicle(when)
        ground = await open_ground()
        peer = await open_peer(remote=ground.address, on_message=vehicle)
        peer.heartbeat(autopilot=PX4_NUMBER)
        assert await ground.vehicle.wait_connected(10.0)
        return ground, vehicle

    return connect


FIRST: list[MissionItem] = mission(ITEMS)
SECOND: list[MissionItem] = mission(ITEMS, step=-500)


async def test_one_that_comes_in_the_middle_does_not_end_the_upload(played: Callable[..., Any]) -> None:
    """The vehicle still asks; it gets all items, and its own acknowledgement counts."""
    ground, vehicle = await played("in the middle")
    assert (await ground.missions.upload(FIRST)).list_id == 1001
    uploaded = await ground.missions.upload(SECOND)
    assert (uploaded.list_id, uploaded.verified) == (1002, "opaque_id")
    assert sent(vehicle) == places(SECOND)


async def test_one_that_comes_instead_of_the_right_one_is_not_believed(played: Callable[..., Any]) -> None:
    """Its id was known before; so what the vehicle has is fetched, and it is the earlier list."""
    ground, vehicle = await played("instead")
    assert (await ground.missions.upload(FIRST)).verified == "opaque_id"
    with pytest.raises(MissionDiffers):
        await ground.missions.upload(SECOND)
    assert sent(vehicle) == places(FIRST)


async def test_an_id_that_only_an_unverified_upload_heard_is_not_believed(played: Callable[..., Any]) -> None:
    """The first list was acknowledged and not looked at; its acknowledgement comes again for the second."""
    ground, vehicle = await played("instead")
    assert (await ground.missions.upload(FIRST, verify=False)).verified is None
    with pytest.raises(MissionDiffers):
        await ground.missions.upload(SECOND)
    assert sent(vehicle) == places(FIRST)


async def test_an_id_that_was_never_heard_is_asked_for_before(played: Callable[..., Any]) -> None:
    """The first list is from before we came."""
    ground, vehicle = await played("instead")
    await ground.missions.upload(FIRST, verify=False)
    ground.missions._ids = ListIds()
    with pytest.raises(MissionDiffers):
        await ground.missions.upload(SECOND)
    assert sent(vehicle) == places(FIRST)


async def test_the_id_before_is_asked_for_only_once(played: Callable[..., Any]) -> None:
    """From then on each verified upload leaves it known."""
    ground, vehicle = await played("never")
    for number, items in enumerate((FIRST, SECOND, mission(ITEMS, step=300)), 1):
        assert (await ground.missions.upload(items)).verified == "opaque_id"
        assert vehicle.counted == 1 + number
    # the same id again: it may be a late acknowledgement, so that what is there is looked at
    vehicle.lists -= 1
    assert (await ground.missions.upload(FIRST)).verified == "download"
