"""PX4's shell over SERIAL_CONTROL, simulated: it echoes what is typed, and knows a few commands."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from petalbus.handlers.mavlink.sim.disk import Disk
from petalbus.handlers.mavlink.sim.service import Onboard
from petalbus.handlers.mavlink.wire.framing import Frame

PROMPT: Final = "nsh> "
_SERIAL_CONTROL: Final = 126
_LAYOUT: Final = struct.Struct("<IHBBB70sBB")
_SHELL: Final = 10
_REPLY: Final = 1
_RESPOND: Final = 2
_CHUNK: Final = 70
_LINE: Final = 128
_MESSAGES_A_TICK: Final = 10
_MOST_WAITING: Final = 64 << 10
_ERASE_TO_END: Final = "\x1b[K"
_BACKSPACES: Final = "\b\x7f"


class ShellServer:
    """One shell, opened by the first message that asks for an answer, closed by one that asks for none."""

    handles = frozenset((_SERIAL_CONTROL,))

    def __init__(self, onboard: Onboard, disk: Disk) -> None:
        self._onboard = onboard
        self._disk = disk
        self._open = False
        self._line = ""
        self._out = bytearray()
        self._user = 0, 0
        self._logging = False
        self._commands: dict[str, Callable[[list[str]], str]] = {
            "help": self._help,
            "logger": self._logger,
            "ls": self._ls,
            "rm": self._rm,
        }

    def receive(self, frame: Frame) -> None:
        """Somebody types, or goes."""
        payload = frame.payload[: _LAYOUT.size].ljust(_LAYOUT.size, b"\0")
        _, _, device, flags, count, data, system, component = _LAYOUT.unpack(payload)
        if device != _SHELL or flags & _REPLY or not self._onboard.is_for_us(system, component):
            return
        if not flags & _RESPOND:
            self.reset()
            return
        self._user = frame.sysid, frame.compid
        if not self._open:
            self._open = True
            self._print(f"\n{PROMPT}{_ERASE_TO_END}")
        for character in data[: min(count, _CHUNK)].decode("ascii", "replace"):
            self._type(character)

    def tick(self) -> None:
        """Send some of what was printed."""
        for _ in range(_MESSAGES_A_TICK):
            if not self._out:
                return
            part = bytes(self._out[:_CHUNK])
            del self._out[:_CHUNK]
            self._onboard.send_payload(
                _SERIAL_CONTROL, _LAYOUT.pack(0, 0, _SHELL, _REPLY, len(part), part, *self._user)
            )

    def reset(self) -> None:
        """The shell closes; what it did not print yet is lost."""
        self._open = False
        self._line = ""
        self._out.clear()

    def _print(self, text: str) -> None:
        room = _MOST_WAITING - len(self._out)
        self._out += text.replace("\n", "\r\n").encode("ascii", "replace")[:room]

    def _type(self, character: str) -> None:
        if character == "\n":
            line, self._line = self._line, ""
            self._print("\n" + self._run(line) + PROMPT + _ERASE_TO_END)
        elif character in _BACKSPACES:
            if self._line:
                self._line = self._line[:-1]
                self._print("\b" + _ERASE_TO_END)
        elif character.isprintable() and len(self._line) < _LINE:
            self._line += character
            self._print(character)

    def _run(self, line: str) -> str:
        """What a line prints."""
        words = line.split()
        if not words:
            return ""
        self._onboard.note({"event": "shell", "line": line})
        command = self._commands.get(words[0])
        return f"nsh: {words[0]}: command not found\n" if command is None else command(words[1:])

    def _help(self, _words: list[str]) -> str:
        return "help usage:  help [-v] [<cmd>]\n\n" + "".join(f"    {name}\n" for name in sorted(self._commands))

    def _logger(self, words: list[str]) -> str:
        match words:
            case ["on" | "off" as state]:
                self._logging = state == "on"
                return ""
            case ["start" | "stop", *_]:
                self._logging = False
                return ""
            case ["status"]:
                return f"INFO  [logger] {'Running in mode: all' if self._logging else 'Not logging'}\n"
        return "Usage: logger <command>\n Commands:\n   start\n   stop\n   on\n   off\n   status\n"

    def _ls(self, words: list[str]) -> str:
        path = _path(words[0] if words else "/")
        if path in self._disk.files:
            return f" {path}\n"
        try:
            listed = self._disk.listed(path)
        except KeyError:
            return "nsh: ls: stat failed: 2\n"
        return f"{path}:\n" + "".join(f" {name}{'/' if size is None else ''}\n" for name, size in listed)

    def _rm(self, words: list[str]) -> str:
        if len(words) != 1:
            return "nsh: rm: missing required argument(s)\n"
        try:
            self._disk.remove(_path(words[0]))
        except KeyError:
            return "nsh: rm: unlink failed: 2\n"
        return ""


def _path(word: str) -> str:
    return "/" + word.strip("/")
