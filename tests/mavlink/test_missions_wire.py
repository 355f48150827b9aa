"""The mission protocol message by message: vehicles that the test plays, and recorded sessions with real ones."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pymavlink.dialects.v20 import all as mavlink

from mavlink.ground import BOTH, until
from mavlink.peer import ARDUPILOT as ARDUPILOT_NUMBER
from mavlink.peer import PX4 as PX4_NUMBER
from mavlink.peer import Peer
from mavlink.some_missions import PROTOCOL, mission, onboard
from petalbus.handlers.mavlink.missions.client import MissionDiffers, MissionRefused
from petalbus.handlers.mavlink.wire.dialect import load_dialect
from petalbus.handlers.mavlink.wire.framing import Framer

CAPTURES = Path(__file__).resolve().parents[3] / "shared" / "data" / "captures"


@pytest.fixture
async def scripted(open_ground: Callable[..., Any], open_peer: Callable[..., Any]) -> Callable[..., Any]:
    """``ground, peer = await scripted(on_message, autopilot=...)``: a vehicle that the test plays."""

    async def connect(on_message: Any, *, autopilot: int = PX4_NUMBER) -> Any:
        ground = await open_ground()
        peer = await open_peer(remote=ground.address, on_message=on_message)
        peer.heartbeat(autopilot=autopilot)
        assert await ground.vehicle.wait_connected(10.0)
        return ground, peer

    return connect


async def test_the_current_item_by_command(scripted: Callable[..., Any]) -> None:
    results = iter((0, 2))

    def vehicle(peer: Peer, message: Any) -> None:
        if message.get_type() == "COMMAND_LONG" and message.command == 224:
            peer.ack(224, next(results))

    ground, peer = await scripted(vehicle)
    await ground.missions.set_current(7)
    assert peer.commands(224)[0].param1 == 7
    with pytest.raises(MissionRefused, match="MAV_RESULT_DENIED"):
        await ground.missions.set_current(8)
    assert not peer.of("MISSION_SET_CURRENT")
    peer.send(mavlink.MAVLink_mission_item_reached_message(6))
    await until(lambda: ground.missions.progress.reached == 6)


async def test_acknowledgements_of_something_else_count_for_nothing(scripted: Callable[..., Any]) -> None:
    """Of another kind, of an earlier upload, for another ground station; and errors while the vehicle goes on."""

    def ack(peer: Peer, result: int, *, kind: int = 0, to: tuple[int, int] = (2, 140)) -> None:
        peer.send(mavlink.MAVLink_mission_ack_message(*to, result, kind))

    def vehicle(peer: Peer, message: Any) -> None:
        kind = message.get_type()
        if kind == "MISSION_COUNT" and message.count:
            ack(peer, 0)
            ack(peer, 13)
            ack(peer, 3, kind=1)
            ack(peer, 3, to=(255, 190))
            peer.send(mavlink.MAVLink_mission_request_message(2, 140, 9, 0))
            peer.send(mavlink.MAVLink_mission_request_message(2, 140, 0, 0))
        elif kind == "MISSION_ITEM_INT":
            ack(peer, 13)
            ack(peer, 1)
            if message.seq < 2:
                ack(peer, 0)
                peer.send(mavlink.MAVLink_mission_request_message(2, 140, message.seq + 1, 0))
                peer.send(mavlink.MAVLink_mission_request_message(2, 140, message.seq + 1, 1))
            else:
                ack(peer, 0)
        assert kind != "MISSION_ITEM", "old requests are answered with whole numbers, too"

    ground, peer = await scripted(vehicle, autopilot=ARDUPILOT_NUMBER)
    sent = await ground.missions.upload(mission(3), verify=False)
    assert (sent.sent, sent.verified) == (3, None)
    assert {item.seq for item in peer.of("MISSION_ITEM_INT")} == {0, 1, 2}


async def test_what_is_there_afterwards_decides(scripted: Callable[..., Any]) -> None:
    """Accepted, but the vehicle has something else; not accepted, but it has it: the download says what is true."""
    has = mission(2, step=5000)
    lost = False

    def vehicle(peer: Peer, message: Any) -> None:
        kind = message.get_type()
        if kind == "MISSION_COUNT":
            peer.send(mavlink.MAVLink_mission_request_int_message(2, 140, 0, 0))
        elif kind == "MISSION_ITEM_INT" and message.seq == 0:
            peer.send(mavlink.MAVLink_mission_request_int_message(2, 140, 1, 0))
        elif kind == "MISSION_ITEM_INT":
            peer.send(mavlink.MAVLink_mission_ack_message(2, 140, 1 if lost else 0, 0))
        elif kind == "MISSION_REQUEST_LIST":
            peer.send(mavlink.MAVLink_mission_count_message(2, 140, len(has), 0))
        elif kind == "MISSION_REQUEST_INT":
            fields = {**has[message.seq].fields(), "target_system": 2, "target_component": 140, "mission_type": 0}
            peer.send(load_dialect().message("MISSION_ITEM_INT", **fields))

    ground, _peer = await scripted(vehicle)
    with pytest.raises(MissionDiffers) as caught:
        await ground.missions.upload(mission(2), timeout=3.0)
    assert caught.value.detail["differences"] == ["item 1: x 473982430, not 473977530"]
    lost = True
    with pytest.raises(MissionRefused, match="MAV_MISSION_ERROR"):
        await ground.missions.upload(mission(2), timeout=3.0)
    has = mission(2)
    assert (await ground.missions.upload(mission(2), timeout=3.0)).verified == "download"


async def test_a_list_that_changes_under_our_hands_is_fetched_anew(scripted: Callable[..., Any]) -> None:
    old, new = mission(4), mission(6, step=-9)
    has = old

    def vehicle(peer: Peer, message: Any) -> None:
        nonlocal has
        kind = message.get_type()
        if kind == "MISSION_REQUEST_LIST":
            peer.send(mavlink.MAVLink_mission_count_message(2, 140, len(has), 0))
        elif kind == "MISSION_REQUEST_INT":
            if message.seq == 2 and has is old:
                has = new
                peer.send(mavlink.MAVLink_mission_ack_message(2, 140, 1, 0))
                return
            fields = {**has[message.seq].fields(), "target_system": 2, "target_component": 140, "mission_type": 0}
            if message.seq != 2 or has is new:
                peer.send(load_dialect().message("MISSION_ITEM_INT", **fields))

    ground, _peer = await scripted(vehicle)
    assert await ground.missions.download() == new


@pytest.mark.skipif(not CAPTURES.is_dir(), reason="the recorded sessions are not here")
@BOTH
async def test_the_simulation_says_what_was_recorded(open_ground: Callable[..., Any], autopilot: Any) -> None:
    """The questions of the recorded session get the same kinds of messages in the same order, with the same items."""
    dialect = load_dialect()
    framers = {way: Framer(dialect.crc_extras) for way in ("up", "down")}
    script = []
    with gzip.open(CAPTURES / f"{autopilot.name}.jsonl.gz", "rt", encoding="ascii") as lines:
        for line in lines:
            _, way, text = json.loads(line)
            frames = framers[way].feed_datagram(bytes.fromhex(text))
            script += [(way, frame) for frame in frames if frame.msgid in PROTOCOL]
    assert len(script) > 20
    ground, sim = await open_ground(autopilot)
    onboard(sim).check_s = 5.0  # the recorded questions came before PX4 had looked at the mission
    heard: list[Any] = []
    with ground.calls.listen(PROTOCOL, 1) as inbox:
        for way, frame in script:
            if way == "up":
                ground.calls.send_payload(frame.msgid, frame.payload, 1)
                continue
            got = await inbox.get(10.0)
            assert got is not None, f"nothing came where {dialect.names[frame.msgid]} was recorded"
            heard.append((got.msgid, {**dialect.fields(got), **_ADDRESS}, got.payload[4:] if got.msgid == 47 else b""))
            want = (frame.msgid, {**dialect.fields(frame), **_ADDRESS}, frame.payload[4:] if frame.msgid == 47 else b"")
            assert str(_rounded(heard[-1])) == str(_rounded(want))
        assert await inbox.get(0.1) is None


_ADDRESS = {"target_system": 0, "target_component": 0}


def _rounded(said: tuple[int, dict[str, Any], bytes]) -> tuple[int, dict[str, Any], bytes]:
    """Home is not to the centimetre what it was then."""
    msgid, fields, rest = said
    if fields.get("seq") == 0 and fields.get("z", 0) > 500:
        fields = {**fields, "x": fields["x"] // 100, "y": fields["y"] // 100, "z": round(fields["z"])}
    return msgid, fields, rest
