"""What can go wrong with a replay, each with what to do about it."""

from __future__ import annotations


class ReplayError(Exception):
    """A replay cannot be done, or not to its end. ``code`` is stable across versions."""

    code = "replay"


class ReplayRefused(ReplayError):
    """The target is not a fresh bus: it runs, or holds records."""

    code = "replay_refused"


class NoHistory(ReplayError):
    """There is nothing to replay where it was looked for."""

    code = "no_history"
