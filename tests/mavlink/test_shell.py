"""PX4's shell over real UDP: the simulated vehicle's, and scripted ones that lose and lie."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from pymavlink.dialects.v20 import all as mavlink

from mavlink.ground import Ground
from mavlink.peer import Peer
from petalbus.handlers.mavlink.errors import NotConnected, OrderInvalid
from petalbus.handlers.mavlink.files.shell import LONGEST_LINE, Shell, ShellUnavailable, ShellUnconfirmed
from petalbus.handlers.mavlink.sim.autopilot import ARDUPILOT, PX4
from petalbus.handlers.mavlink.sim.failures import Failures

LOG = "/fs/microsd/log/2026-11-01/12_00_01.ulg"


def lines(ground: Ground) -> list[str]:
    """What the simulated shell ran."""
    return [entry["line"].rstrip() for entry in ground.events("shell")]


async def test_commands_and_what_they_print(open_ground: Callable[..., Any]) -> None:
    ground, sim = await open_ground(PX4)
    run = ground.shell.run
    assert await run("ls /fs/microsd/log") == "/fs/microsd/log:\n 2026-11-01/\n 2026-11-02/\n 2026-11-03/\n"
    assert await run("nonsense 1 2") == "nsh: nonsense: command not found\n"
    assert await run("logger on") == ""
    assert await run("logger status") == "INFO  [logger] Running in mode: all\n"
    assert await run("logger off") == ""
    assert await run("logger status") == "INFO  [logger] Not logging\n"
    assert "    logger\n" in await run("help")
    assert await run(f"rm {LOG}") == ""
    assert await run(f"rm {LOG}") == "nsh: rm: unlink failed: 2\n"
    assert ground.shell.complete
    assert LOG not in sim.disk.files
    long = "ls /" + "x" * (LONGEST_LINE - 4)
    assert await run(long) == "nsh: ls: stat failed: 2\n"
    assert lines(ground)[-1] == long, "a line of two messages"


@pytest.mark.parametrize(("failures", "seed"), [((0.1, 0.02), 1), ((0.3, 0.0), 2), ((0.3, 0.05), 3)])
async def test_with_loss_no_other_line_runs_and_none_twice(
    open_ground: Callable[..., Any], failures: tuple[float, float], seed: int
) -> None:
    loss, delay = failures
    wire = Failures(loss=loss, delay=delay, duplicate=0.1)
    ground, sim = await open_ground(PX4, wire, seed=seed)
    wanted = [f"rm {LOG}", "ls /" + "y" * 90, "logger status"]
    ran: list[str] = []
    for command in wanted:
        try:
            text = await ground.shell.run(command, timeout=8.0)
        except (ShellUnavailable, ShellUnconfirmed):
            assert lines(ground) == ran, "an error means that it did not run"
            continue
        if lines(ground) == ran:
            assert not ground.shell.complete, "the line's end was lost each time"
        else:
            ran.append(command)
        assert lines(ground) == ran
        if ground.shell.complete and command == "logger status" and text.endswith("\n"):
            assert "logger" in text
    assert ran, "with so much time some get through"
    assert (LOG in sim.disk.files) == (wanted[0] not in ran)


async def test_much_output_is_bounded(open_ground: Callable[..., Any]) -> None:
    ground, sim = await open_ground(PX4)
    for number in range(400):
        sim.disk.files[f"/fs/microsd/{'n' * 40}{number:04}"] = bytearray()
    text = await ground.shell.run("ls /fs/microsd", timeout=20.0)
    assert ground.shell.complete
    assert text.count("\n") == 402
    small = Shell(ground.calls, ground.vehicle, most_output=1000)
    text = await small.run("ls /fs/microsd", timeout=20.0)
    assert 900 <= len(text) <= 1000
    assert not small.complete


async def test_ardupilot_has_none(open_ground: Callable[..., Any]) -> None:
    ground, _ = await open_ground(ARDUPILOT)
    with pytest.raises(ShellUnavailable, match="did not answer"):
        await ground.shell.run("help", timeout=0.5)


@pytest.mark.parametrize("command", ["", "  ", "a\nb", "a\x03", "é", "x" * (LONGEST_LINE + 1)])
async def test_what_cannot_be_typed(open_ground: Callable[..., Any], command: str) -> None:
    ground, _ = await open_ground(PX4)
    with pytest.raises(OrderInvalid, match="field 'command'"):
        await ground.shell.run(command)
    assert lines(ground) == []


async def test_nobody_is_there(open_ground: Callable[..., Any]) -> None:
    ground = await open_ground()
    with pytest.raises(NotConnected):
        await ground.shell.run("help")


async def scripted(open_ground: Callable[..., Any], open_peer: Callable[..., Any], on_message: Any) -> Any:
    ground = await open_ground()
    peer = await open_peer(remote=ground.address, on_message=on_message)
    peer.heartbeat()
    assert await ground.vehicle.wait_connected(10.0)
    return ground, peer


def say(peer: Peer, text: str, *, device: int = 10, flags: int = 1, count: int | None = None) -> None:
    raw = text.encode()
    count = len(raw) if count is None else count
    peer.send(mavlink.MAVLink_serial_control_message(device, flags, 0, 0, count, list(raw.ljust(70, b"\0"))))


def typed(message: Any) -> str:
    """What a message types, or nothing."""
    if message.get_type() != "SERIAL_CONTROL" or not message.flags & 2:
        return ""
    return bytes(message.data[: message.count]).decode()


async def test_the_lock_is_given_back_also_when_cancelled(
    open_ground: Callable[..., Any], open_peer: Callable[..., Any]
) -> None:
    def silent_command(peer: Peer, message: Any) -> None:
        text = typed(message)
        say(peer, "\r\n" if text == "\n" else text) if text else None

    ground, peer = await scripted(open_ground, open_peer, silent_command)
    task = asyncio.create_task(ground.shell.run("sleep 100", settle=20.0, timeout=20.0))
    await peer.until(lambda: [message for message in peer.heard if typed(message) == "\n"])
    with pytest.raises(ShellUnavailable, match="another command"):
        await ground.shell.run("help", timeout=0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await peer.until(lambda: peer.of("SERIAL_CONTROL")[-1].flags == 0)
    seen = peer.of("SERIAL_CONTROL")
    assert {message.flags for message in seen} == {0, 6}, "answer, and for us alone"
    assert {message.device for message in seen} == {10}
    assert await ground.shell.run("sleep 1", settle=0.1) == "", "and it is free again"
    assert not ground.shell.complete, "no prompt came"


async def test_a_line_that_arrives_with_a_hole_does_not_run(
    open_ground: Callable[..., Any], open_peer: Callable[..., Any]
) -> None:
    """The second message of a long line gets lost each time: the vehicle must never see the line's end."""

    def lossy(peer: Peer, message: Any) -> None:
        text = typed(message)
        if len(text) == 70:
            say(peer, text)

    ground, peer = await scripted(open_ground, open_peer, lossy)
    with pytest.raises(ShellUnconfirmed, match="did not run"):
        await ground.shell.run("rm /" + "z" * 100, timeout=1.5)
    assert not [message for message in peer.heard if "\n" in typed(message)]


async def test_pxh_with_colours_and_messages_of_others(
    open_ground: Callable[..., Any], open_peer: Callable[..., Any]
) -> None:
    """The shell of PX4 in simulation has another prompt, and no prompt at its start."""

    def pxh(peer: Peer, message: Any) -> None:
        text = typed(message)
        if text == "\n":
            say(peer, "\n")
            say(peer, "GPS talks", device=2)
            say(peer, "a question", flags=0)
            say(peer, "too much", count=200)
            say(peer, "\x1b[1;31mred\x1b[0m\r\nnsh> is in it\n")
            say(peer, "pxh> ")
        elif text:
            say(peer, text)

    ground, _ = await scripted(open_ground, open_peer, pxh)
    assert await ground.shell.run("colours") == "red\nnsh> is in it\n"
    assert ground.shell.complete
