"""How a command ends: exit codes, and one line about what went wrong (docs/cli.md lists them)."""

from __future__ import annotations

import json
import os
import sys
import traceback
from enum import IntEnum
from typing import Final

import typer


class Exit(IntEnum):
    """Exit codes of the command line."""

    OK = 0
    REFUSED = 1
    USAGE = 2
    NO_BUS = 3
    TIMEOUT = 4
    IN_USE = 5
    INTERNAL = 70
    INTERRUPTED = 130


class Refused(Exception):
    """A command cannot do what it was asked to. ``code`` is for programs, the message for people."""

    def __init__(self, message: str, *, code: str = "refused", exit_code: Exit = Exit.REFUSED) -> None:
        self.code = code
        self.exit_code = exit_code
        super().__init__(message)


class BadUsage(Refused):
    """What was typed makes no sense."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="usage", exit_code=Exit.USAGE)


# typer's own errors, also where it brings its parser along instead of depending on one
USAGE_ERROR: Final[type[Exception]] = typer.BadParameter.__mro__[1]

_CODES: Final = {
    "no_running_bus": Exit.NO_BUS,
    "bus_unavailable": Exit.NO_BUS,
    "outcome_unknown": Exit.NO_BUS,
    "server_unreachable": Exit.NO_BUS,
    "request_timeout": Exit.TIMEOUT,
    "data_directory_in_use": Exit.IN_USE,
    "config": Exit.USAGE,
    "ENDPOINT_INVALID": Exit.USAGE,
}


def report(error: BaseException, *, as_json: bool) -> int:
    """Say in one line on the standard error what went wrong; the exit code for it."""
    if isinstance(error, USAGE_ERROR) and not str(error).strip():
        return Exit.USAGE  # nothing was asked for, and the help is printed already
    if isinstance(error, USAGE_ERROR):
        code, text, number = "usage", _usage_text(error), Exit.USAGE
    elif isinstance(error, Refused):
        code, text, number = error.code, str(error), error.exit_code
    elif isinstance(stable := getattr(error, "code", None), str):
        code, text, number = stable, str(error), _CODES.get(stable, Exit.REFUSED)
    elif getattr(error, "prefix", None):  # an error reply of the server that the bus has no word for
        code, text, number = "server_error", str(error), Exit.REFUSED
    else:
        code, text, number = "internal", f"this is a bug: {type(error).__name__}: {error}", Exit.INTERNAL
    if os.environ.get("PETALBUS_TRACEBACK"):
        traceback.print_exception(error)
    elif number is Exit.INTERNAL:
        text += " (PETALBUS_TRACEBACK=1 shows where)"
    text = " ".join(text.split()) if code != "server_start" else text
    if as_json:
        sys.stderr.write(json.dumps({"error": {"code": code, "message": text, "exit_code": int(number)}}) + "\n")
    else:
        sys.stderr.write(f"petalbus: {text}\n")
    return int(number)


def _usage_text(error: Exception) -> str:
    words = error.format_message() if hasattr(error, "format_message") else str(error)
    context = getattr(error, "ctx", None)
    return f"{words} (see `{context.command_path} --help`)" if context is not None else words
