"""Rebooting and formatting through the proxy (S-035, S-036)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pymavlink.dialects.v20 import all as mavlink

from mavlink.peer import ARDUPILOT, Peer
from petalbus.petals.models.mavlink import FormatStorageStatusCode, RebootAutopilotResponse, RebootStatusCode

from support.mavlink_rig import Rig, commands, rig
from support.procs import Children
from support.servers import RealServer

REBOOT = mavlink.MAV_CMD_PREFLIGHT_REBOOT_SHUTDOWN
FORMAT = mavlink.MAV_CMD_STORAGE_FORMAT
SOON = {"ack_timeout": 0.3, "hb_drop_window_s": 0.8, "hb_drop_gap_s": 0.4, "hb_return_window_s": 2.0}


@pytest.fixture
async def vehicle(server: RealServer, bus_name: str) -> AsyncIterator[Rig]:
    async with rig(server, bus_name) as one:
        yield one


class Rebooting:
    """A scripted vehicle with heartbeats every 0.1 s that reboots, or does not."""

    def __init__(
        self, vehicle: Rig, *, ack: int | None, silence: float, returns: bool = True, obeys_after: float = 0.0
    ) -> None:
        self._vehicle = vehicle
        self._ack = ack
        self._silence = silence
        self._returns = returns
        self._obeys_after = obeys_after
        self._quiet_from = self._quiet_until = 0.0

    async def start(self) -> Peer:
        peer: Peer = await self._vehicle.scripted(self._on_message, autopilot=ARDUPILOT)
        self._task = asyncio.create_task(self._beat(peer), name="test.heartbeats")
        return peer

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def _on_message(self, peer: Peer, message: Any) -> None:
        if message.get_type() != "COMMAND_LONG" or message.command != REBOOT:
            return
        if self._ack is not None:
            peer.ack(REBOOT, self._ack)
        if self._silence:
            self._quiet_from = asyncio.get_running_loop().time() + self._obeys_after
            self._quiet_until = self._quiet_from + (self._silence if self._returns else 3600.0)

    async def _beat(self, peer: Peer) -> None:
        while True:
            if not self._quiet_from <= asyncio.get_running_loop().time() < self._quiet_until:
                peer.heartbeat(autopilot=ARDUPILOT)
            await asyncio.sleep(0.1)


async def test_ardupilot_reboots_and_says_so(vehicle: Rig, children: Children) -> None:
    """S-035, S-036."""
    sim = await vehicle.sim(children, "--autopilot", "ardupilot")
    proxy = await vehicle.proxy()
    result = await proxy.reboot_autopilot(reboot_onboard_computer=False, timeout=3.0)
    assert isinstance(result, RebootAutopilotResponse)
    assert (result.success, result.status_code, result.ack_result) == (True, RebootStatusCode.OK_ACK_ACCEPTED, 0)
    assert result.reason
    sent = await commands(sim, "REBOOT_SHUTDOWN")
    assert sent["params"][:2] == [1.0, 0.0]


async def test_the_whole_reboot_is_seen(vehicle: Rig, children: Children) -> None:
    sim = await vehicle.sim(children, "--autopilot", "ardupilot")
    proxy = await vehicle.proxy()
    result = await proxy.reboot_autopilot_confirmed(reboot_onboard_computer=True)
    assert (result.success, result.status_code) == (True, RebootStatusCode.OK_ACK_ACCEPTED_HB_CONFIRMED)
    sent = await commands(sim, "REBOOT_SHUTDOWN")
    assert sent["params"][:2] == [1.0, 1.0]


async def test_px4s_simulation_denies(vehicle: Rig, children: Children) -> None:
    await vehicle.sim(children, "--autopilot", "px4")
    proxy = await vehicle.proxy()
    for result in (await proxy.reboot_autopilot(), await proxy.reboot_autopilot_confirmed()):
        assert (result.success, result.status_code, result.ack_result) == (False, RebootStatusCode.FAIL_ACK_DENIED, 2)


@pytest.mark.parametrize(
    ("ack", "silence", "returns", "sitl", "code", "sends"),
    [
        (0, 0.7, True, False, "OK_ACK_ACCEPTED_HB_CONFIRMED", 1),
        (None, 1.2, True, False, "OK_HB_CONFIRMED_NO_ACK", 1),
        (2, 0.7, True, True, "OK_ACK_ACCEPTED_HB_CONFIRMED", 1),
        (0, 0.0, True, False, "FAIL_REBOOT_NOT_CONFIRMED_NO_HB_DROP", 1),
        (None, 0.0, True, False, "FAIL_REBOOT_NOT_CONFIRMED_NO_HB_DROP", 3),
        (0, 0.7, False, False, "FAIL_REBOOT_NOT_CONFIRMED_HB_NO_RETURN", 1),
        (1, 0.0, True, False, "FAIL_ACK_TEMPORARILY_REJECTED", 1),
        (3, 0.0, True, False, "FAIL_ACK_UNSUPPORTED", 1),
        (4, 0.0, True, False, "FAIL_ACK_FAILED", 1),
        (6, 0.0, True, False, "FAIL_ACK_CANCELLED", 1),
        (9, 0.0, True, False, "FAIL_ACK_UNKNOWN", 1),
    ],
)
async def test_every_outcome_has_its_code(
    vehicle: Rig, ack: int | None, silence: float, returns: bool, sitl: bool, code: str, sends: int
) -> None:
    """Sent again only while the heartbeats go on: a silent autopilot is rebooting already."""
    autopilot = Rebooting(vehicle, ack=ack, silence=silence, returns=returns)
    peer = await autopilot.start()
    proxy = await vehicle.proxy()
    try:
        result = await proxy.reboot_autopilot_confirmed(**SOON, retry_delay_s=0.05, sitl_mode=sitl)
    finally:
        await autopilot.stop()
    assert result.status_code.value == code, result.reason
    assert result.success == code.startswith("OK")
    assert result.ack_result == ack
    assert len(peer.commands(REBOOT)) == sends


async def test_a_reboot_that_is_over_before_the_acknowledgement_is_missed_is_seen(vehicle: Rig) -> None:
    """S-035: the heartbeats stopped and came back within the time of the acknowledgement, which was lost."""
    autopilot = Rebooting(vehicle, ack=None, silence=0.7)
    peer = await autopilot.start()
    proxy = await vehicle.proxy()
    try:
        result = await proxy.reboot_autopilot_confirmed(**{**SOON, "ack_timeout": 1.2})
    finally:
        await autopilot.stop()
    assert (result.success, result.status_code.value) == (True, "OK_HB_CONFIRMED_NO_ACK")
    assert len(peer.commands(REBOOT)) == 1


async def test_an_autopilot_that_says_a_little_more_before_it_obeys_is_asked_once(vehicle: Rig) -> None:
    """S-035, I6: heartbeats that come after the command and before the silence do not mean that it was not heard."""
    autopilot = Rebooting(vehicle, ack=None, silence=1.5, obeys_after=0.2)
    peer = await autopilot.start()
    proxy = await vehicle.proxy()
    try:
        result = await proxy.reboot_autopilot_confirmed(**SOON, retry_delay_s=0.05)
    finally:
        await autopilot.stop()
    assert (result.success, result.status_code.value) == (True, "OK_HB_CONFIRMED_NO_ACK")
    assert len(peer.commands(REBOOT)) == 1


async def test_without_an_acknowledgement_the_heartbeats_decide(vehicle: Rig) -> None:
    autopilot = Rebooting(vehicle, ack=None, silence=2.0)
    peer = await autopilot.start()
    proxy = await vehicle.proxy()
    try:
        result = await proxy.reboot_autopilot(timeout=0.2)
    finally:
        await autopilot.stop()
    assert (result.success, result.status_code) == (True, RebootStatusCode.OK_REBOOT_CONFIRMED_NO_ACK)
    assert len(peer.commands(REBOOT)) == 1, "it leaves once"


async def test_formatting_leaves_the_parameters_alone(vehicle: Rig, children: Children) -> None:
    """MAV_CMD_STORAGE_FORMAT; never MAV_CMD_PREFLIGHT_STORAGE with 2, which resets every parameter."""
    sim = await vehicle.sim(children, "--autopilot", "ardupilot")
    proxy = await vehicle.proxy()
    result = await proxy.format_sd_card()
    assert (result.success, result.status_code, result.ack_result) == (
        True,
        FormatStorageStatusCode.OK_ACK_ACCEPTED,
        0,
    )
    sent = await commands(sim, '"event": "command"')
    assert (sent["command"], sent["params"][:2]) == ("MAV_CMD_STORAGE_FORMAT", [1.0, 1.0])
    built = proxy.build_format_storage_command(storage_id=2)
    assert (built.command, built.param1, built.param2) == (FORMAT, 2.0, 1.0)
    assert FORMAT == 526
    refused = await proxy.format_sd_card(storage_id=2)
    assert (refused.success, refused.status_code) == (False, FormatStorageStatusCode.FAIL_ACK_UNSUPPORTED)
    with pytest.raises(ValueError, match="storage"):
        await proxy.format_sd_card(storage_id=-1)


async def test_formatting_that_nobody_acknowledges(vehicle: Rig) -> None:
    peer = await vehicle.scripted(lambda _peer, _message: None)
    proxy = await vehicle.proxy()
    result = await proxy.format_sd_card(timeout=0.3)
    assert (result.success, result.status_code) == (False, FormatStorageStatusCode.FAIL_TIMEOUT)
    assert len(peer.commands(FORMAT)) == 1


async def test_built_messages(vehicle: Rig) -> None:
    await vehicle.scripted(system=5)
    proxy = await vehicle.proxy()
    reboot = proxy.build_reboot_command(reboot_onboard_computer=True)
    assert (reboot.target_system, reboot.target_component, reboot.command) == (5, 1, REBOOT)
    assert (reboot.param1, reboot.param2) == (1.0, 1.0)
    assert proxy.build_reboot_command(target_component=191).target_component == 191
    motor = proxy.build_motor_value_command(3, 0.2, 1.5)
    assert (motor.command, motor.param1, motor.param2, motor.param5) == (310, pytest.approx(0.2), 1.5, 1103.0)
    read = proxy.build_param_request_read("MAV_TYPE")
    assert (read.param_id, read.param_index, read.target_system) == ("MAV_TYPE", -1, 5)
    assert proxy.build_param_request_list().target_component == 1
    log = proxy.build_req_msg_log_data(7, ofs=90)
    assert (log.id, log.ofs, log.count) == (7, 90, 0xFFFFFFFF)
    logs = proxy.build_req_msg_log_request(118)
    assert (logs.start, logs.end) == (0, 0xFFFF)
    shell = proxy.build_shell_serial_control_msgs("x" * 100)
    assert [(one.device, one.count, one.flags, len(one.data)) for one in shell] == [(10, 70, 6, 70), (10, 30, 6, 70)]
    assert bytes(shell[1].data[:30]) == b"x" * 30
