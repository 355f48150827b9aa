"""PX4's shell over SERIAL_CONTROL: type a line, see what it prints.

The protocol repeats nothing. A line that lost a piece on its way would be another command, so it is typed without
its end first; only when the vehicle has echoed all of it, it is let run. A line is never run twice. What it
prints may have holes on a link that loses: ``Shell.complete`` says whether at least the next prompt came.
"""

from __future__ import annotations

import asyncio
import re
import struct
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from petalbus.handlers.mavlink.errors import MavlinkError, NotConnected, OrderInvalid
from petalbus.handlers.mavlink.flight.vehicle import Vehicle
from petalbus.handlers.mavlink.params.round_trip import RoundTrip
from petalbus.handlers.mavlink.wire.calls import Calls, Inbox, Operation
from petalbus.handlers.mavlink.wire.framing import Frame

LONGEST_LINE: Final = 120
MOST_OUTPUT: Final = 256 << 10

_SERIAL_CONTROL: Final = 126
_LAYOUT: Final = struct.Struct("<IHBBB70sBB")
_SHELL: Final = 10
_REPLY: Final = 1
_RESPOND: Final = 2
_EXCLUSIVE: Final = 4
_CHUNK: Final = 70
_PROMPTS: Final = "nsh> ", "pxh> "
_PROMPTS_AT_END: Final = re.compile(r"(?:(?:nsh|pxh)> \n?)+\Z")
_CONTROLS: Final = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b.|[\x00\r\x07]")
_RELEASES: Final = 3
_TELL_APART: Final = 8
_FIRST_PATIENCE_S: Final = 0.4
_LEAST_PATIENCE_S: Final = 0.1
_REMEMBERED: Final = 16


class ShellUnavailable(MavlinkError):
    """Nothing answers: the vehicle has no shell (ArduPilot), or the link is down. The command did not run."""

    code = "SHELL_UNAVAILABLE"


class ShellUnconfirmed(MavlinkError):
    """The vehicle's echo never was what had been typed: too much is lost. The command did not run."""

    code = "SHELL_UNCONFIRMED"


class Shell:
    """The shell of one vehicle; one command at a time."""

    def __init__(self, calls: Calls, vehicle: Vehicle, *, most_output: int = MOST_OUTPUT) -> None:
        """``most_output``: bytes that one command may print before the rest is not waited for."""
        self.complete = False
        """Whether the latest command ran to its end: its output was followed by a prompt, and nothing had to be
        repeated for it.
        """
        self._calls = calls
        self._vehicle = vehicle
        self._most = most_output
        self._trip = RoundTrip()
        self._free = asyncio.Lock()
        self._operation: Operation | None = None

    async def run(self, command: str, *, settle: float = 0.5, timeout: float = 3.0) -> str:
        """Run one line and return what it prints, without its echo and the prompt.

        It ends when the prompt comes, when nothing comes for ``settle`` seconds, or after ``timeout`` seconds
        (typing included). Raises OrderInvalid for anything but one line of printable ASCII, NotConnected,
        ShellUnavailable, ShellUnconfirmed: then the command did not run.
        """
        if not command.strip() or len(command) > LONGEST_LINE or not (command.isascii() and command.isprintable()):
            limit = f"one line of 1 to {LONGEST_LINE} printable ASCII characters"
            raise OrderInvalid("command", f"{command[:200]!r} cannot be typed", limit=limit)
        system = self._vehicle.heard_lately().system
        end = time.monotonic() + timeout
        self.complete = False
        await self._turn(end)
        self._operation = Operation(system)
        try:
            with self._session(system) as (inbox, screen):
                await self._type(command, system, inbox, screen, end)
                return await self._output(system, inbox, screen, settle, end)
        finally:
            self._free.release()

    async def _turn(self, end: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, end - time.monotonic())):
                await self._free.acquire()
        except TimeoutError:
            raise ShellUnavailable("another command is running in the shell; this one did not run") from None

    async def _type(self, command: str, system: int, inbox: Inbox, screen: _Screen, end: float) -> None:
        """Type a line until the vehicle's echo shows all of it; each time into a shell that is new."""
        times = 0
        while time.monotonic() < end:
            if times:
                self._release(system, _RELEASES)
                await self._drain(inbox)
            # spaces at the end tell this echo from one of an earlier time that comes late
            line = command + " " * (times % _TELL_APART)
            times += 1
            screen.clear()
            self._send(system, line.encode())
            began = time.monotonic()
            quiet_at = began + times * self._patience()
            while (now := time.monotonic()) < min(quiet_at, end):
                frame = await inbox.get(min(quiet_at, end) - now)
                if frame is not None and screen.take(frame) and screen.shows(line):
                    if times == 1:
                        self._trip.sample(time.monotonic() - began)
                    return
        if screen.taken == 0:
            raise ShellUnavailable(
                f"the shell of vehicle {system} did not answer ({times} times asked); only PX4 has one. "
                "The command did not run"
            )
        raise ShellUnconfirmed(
            f"vehicle {system} did not echo what was typed ({times} times): too much is lost on the link. "
            "The command did not run; try again, or with a longer timeout"
        )

    async def _output(self, system: int, inbox: Inbox, screen: _Screen, settle: float, end: float) -> str:
        """Let the line run, and collect what it prints."""
        screen.clear()
        self._send(system, b"\n")
        again_at = time.monotonic() + self._patience()
        quiet_at = end
        self.complete = True
        while (now := time.monotonic()) < min(quiet_at, end):
            frame = await inbox.get(min(quiet_at, end, again_at) - now)
            if frame is not None and screen.take(frame):
                quiet_at = time.monotonic() + settle
                again_at = end
                if screen.at_prompt:
                    return screen.output(self._most)
                if screen.size >= self._most:
                    break
            elif time.monotonic() >= again_at:
                # the line's end was lost, or what it printed: another one makes at most a further prompt
                self._send(system, b"\n")
                self.complete = False
                again_at = time.monotonic() + self._patience()
        self.complete = False
        return screen.output(self._most)

    def _patience(self) -> float:
        return max(_LEAST_PATIENCE_S, self._trip.patience(_FIRST_PATIENCE_S))

    async def _drain(self, inbox: Inbox) -> None:
        """Let go what the closed shell had still under way."""
        await inbox.get(self._patience() / 4)
        inbox.clear()

    @contextmanager
    def _session(self, system: int) -> Iterator[tuple[Inbox, _Screen]]:
        with self._calls.listen({_SERIAL_CONTROL}, system) as inbox:
            self._release(system, 1)  # a line that somebody left half typed must not become a part of ours
            try:
                yield inbox, _Screen()
            finally:
                self._release(system, _RELEASES)

    def _release(self, system: int, times: int) -> None:
        """Close the shell and give the lock back. Nothing confirms it, so it is said more than once."""
        with suppress(NotConnected):
            for _ in range(times):
                self._calls.send_payload(_SERIAL_CONTROL, _LAYOUT.pack(0, 0, _SHELL, 0, 0, b"", system, 1), system)

    def _send(self, system: int, data: bytes) -> None:
        for start in range(0, len(data), _CHUNK):
            part = data[start : start + _CHUNK]
            payload = _LAYOUT.pack(0, 0, _SHELL, _RESPOND | _EXCLUSIVE, len(part), part, system, 1)
            self._calls.send_payload(_SERIAL_CONTROL, payload, system, part_of=self._operation)


class _Screen:
    """What the shell printed, without control sequences."""

    def __init__(self) -> None:
        self.taken = 0
        """Messages of the shell, since the beginning."""
        self.size = 0
        """Bytes since ``clear``."""
        self._data = bytearray()
        self._latest: deque[bytes] = deque(maxlen=_REMEMBERED)

    def clear(self) -> None:
        """An empty screen."""
        self._data.clear()
        self.size = 0

    def take(self, frame: Frame) -> bool:
        """Take a message; False when it is not the shell's, or came already."""
        payload = frame.payload[: _LAYOUT.size].ljust(_LAYOUT.size, b"\0")
        _, _, device, flags, count, data, _, _ = _LAYOUT.unpack(payload)
        if device != _SHELL or not flags & _REPLY or count > _CHUNK or frame.raw in self._latest:
            return False
        self._latest.append(frame.raw)
        self.taken += 1
        self.size += count
        self._data += data[:count]
        return True

    @property
    def line(self) -> str:
        """The line where the cursor is."""
        return _plain(self._data[-4 * LONGEST_LINE :]).rpartition("\n")[2]

    def shows(self, typed: str) -> bool:
        """Whether what was typed stands there, alone or behind a prompt."""
        return self.line in (typed, *(prompt + typed for prompt in _PROMPTS))

    @property
    def at_prompt(self) -> bool:
        """Whether the shell waits for the next line."""
        return self.line.endswith(_PROMPTS)

    def output(self, most: int) -> str:
        """What came after the line that was typed, without the prompt behind it."""
        return _PROMPTS_AT_END.sub("", _plain(self._data)[:most].removeprefix("\n"))


def _plain(data: bytes | bytearray) -> str:
    return _CONTROLS.sub("", data.decode("utf-8", "replace"))
