"""What the daemon says: events on the standard output, log lines on the standard error.

Both leave through one bounded queue and a thread, so that a terminal, pipe or journal that does not take them never
blocks the event loop. What does not fit is dropped and counted.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final, TextIO

import structlog

_QUEUE_LINES: Final = 10_000
_FLUSH_SECONDS: Final = 2.0
_EVENTS: Final = "petalbus.events"

Words = Callable[[dict[str, Any]], str | None]
"""How a person reads an event; None: not at all (the log has said it)."""


class _Queue(logging.handlers.QueueHandler):
    """Hands records on as they are, and never waits."""

    def __init__(self, lines: queue.Queue[logging.LogRecord]) -> None:
        super().__init__(lines)
        self.dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Keep the record whole: its reader is a thread of this process, and does the formatting."""
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Add it if there is room."""
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1


class Report:
    """Opens the log and the event output of one daemon; ``close`` writes out what is left.

    ``as_json``: one JSON object per event and per log line. ``words`` makes the line for a person otherwise.
    """

    def __init__(self, *, level: str, as_json: bool, words: Words) -> None:
        self._as_json = as_json
        self._out, self._err = sys.stdout, sys.stderr
        self._words = words
        self._lines: queue.Queue[logging.LogRecord | None] = queue.Queue(_QUEUE_LINES)
        self._handler = _Queue(self._lines)  # type: ignore[arg-type]  # None is the end, put there by close() alone
        self._log_format = _formatter(as_json=as_json, colors=sys.stderr.isatty())
        self._root = logging.getLogger()
        self._root.addHandler(self._handler)
        self._root.setLevel(level.upper())
        _use_structlog()
        self._thread = threading.Thread(target=self._write_all, name="petalbus-report", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Lines that nobody took."""
        return self._handler.dropped

    def event(self, event: str, **details: Any) -> None:
        """Say that something happened, with its details."""
        told = {"event": event, **details}
        text = json.dumps(told, separators=(",", ":"), default=str) if self._as_json else self._words(told)
        if text is not None:
            self._handler.enqueue(logging.LogRecord(_EVENTS, logging.INFO, "", 0, text, None, None))

    def close(self) -> None:
        """Write what is queued, as long as somebody takes it (two seconds at most)."""
        self._root.removeHandler(self._handler)
        deadline = time.monotonic() + _FLUSH_SECONDS
        try:
            self._lines.put(None, timeout=_FLUSH_SECONDS)
        except queue.Full:
            return
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def _write_all(self) -> None:
        while (record := self._lines.get()) is not None:
            if record.name == _EVENTS:
                _write(self._out, record.msg)
            else:
                _write(self._err, self._log_format.format(record))


def _write(stream: TextIO, line: str) -> None:
    try:
        stream.write(line + "\n")
        stream.flush()
    except (OSError, ValueError):  # closed, or its reader is gone: there is nobody to tell
        return


def _formatter(*, as_json: bool, colors: bool) -> logging.Formatter:
    stamps: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    end: list[Any] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if as_json:
        end += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    else:
        plain = structlog.dev.plain_traceback
        end.append(structlog.dev.ConsoleRenderer(colors=colors, pad_event_to=0, exception_formatter=plain))
    return structlog.stdlib.ProcessorFormatter(foreign_pre_chain=stamps, processors=end)


def _use_structlog() -> None:
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
