"""When an alert begins and ends. Pure: it is told what is the case and what time it is (monotonic seconds)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

FORGET_AFTER: Final = 5.0
"""Seconds without a sample after which the samples before count no more as lasting."""


@dataclass(frozen=True, slots=True)
class Change:
    """An alert begins (``active``) or ends. ``severity``: ``info``, ``warning`` or ``critical``."""

    alert: str
    active: bool
    severity: str
    message: str
    details: dict[str, Any]


class Condition:
    """One alert with hysteresis: ``bad`` for ``begin_after`` seconds begins it, ``good`` for ``end_after`` ends it.

    Between bad and good nothing changes, so a value that trembles at a limit is told once.
    """

    def __init__(self, *, begin_after: float, end_after: float) -> None:
        self.active = False
        self._begin_after = begin_after
        self._end_after = end_after
        self._since: float | None = None
        self._last = float("-inf")

    def sample(self, *, bad: bool, good: bool, now: float) -> bool:
        """Take a sample; True when the alert begins or ends with it (``active`` says which)."""
        turning = good if self.active else bad
        if now - self._last > FORGET_AFTER:
            self._since = None
        self._last = now
        if not turning:
            self._since = None
            return False
        if self._since is None:
            self._since = now
        if now - self._since < (self._end_after if self.active else self._begin_after):
            return False
        self.active = not self.active
        self._since = None
        return True

    def set(self, *, active: bool) -> bool:
        """Begin or end at once; True when that is a change."""
        changed = self.active is not active
        self.active = active
        self._since = None
        return changed


@dataclass(frozen=True, slots=True)
class Limits:
    """Where alerts begin and end, in percent of charge and seconds. Between ``low`` and ``ok`` nothing changes."""

    battery_low: float = 25.0
    battery_critical: float = 10.0
    battery_ok: float = 30.0
    battery_after: float = 3.0
    gps_after: float = 2.0
    link_after: float = 4.0
    link_back_after: float = 1.5

    def __post_init__(self) -> None:
        if not 0 < self.battery_critical < self.battery_low < self.battery_ok <= 100:
            raise ValueError(
                f"alert limits: battery_critical={self.battery_critical:g} < battery_low={self.battery_low:g} < "
                f"battery_ok={self.battery_ok:g} must hold, in percent"
            )


class Alerts:
    """All alerts of one vehicle. ``tell`` gets each change once."""

    def __init__(self, limits: Limits, tell: Callable[[Change], None]) -> None:
        self._limits = limits
        self._tell = tell
        after = limits.battery_after
        self._low = Condition(begin_after=after, end_after=after)
        self._critical = Condition(begin_after=after, end_after=after)
        self._gps = Condition(begin_after=limits.gps_after, end_after=limits.gps_after)
        self._link = Condition(begin_after=0.0, end_after=limits.link_back_after)
        self._had_fix = False

    @property
    def active(self) -> list[str]:
        """Names of the alerts that hold now."""
        named = {
            "link_lost": self._link,
            "battery_critical": self._critical,
            "battery_low": self._low,
            "gps_lost": self._gps,
        }
        return [name for name, condition in named.items() if condition.active]

    def battery(self, percent: float, now: float) -> None:
        """A sample of the charge left."""
        limits, good = self._limits, percent >= self._limits.battery_ok
        details = {"battery_percent": percent}
        if self._low.sample(bad=percent <= limits.battery_low, good=good, now=now):
            if self._low.active:
                text = f"the battery is low: {percent:g} % left"
                self._tell(Change("battery_low", active=True, severity="warning", message=text, details=details))
            else:
                text = f"the battery is no longer low: {percent:g} %"
                self._tell(Change("battery_low", active=False, severity="info", message=text, details=details))
        good = percent > limits.battery_low
        if self._critical.sample(bad=percent <= limits.battery_critical, good=good, now=now):
            active = self._critical.active
            text = f"the battery is {'nearly' if active else 'no longer nearly'} empty: {percent:g} %"
            severity = "critical" if active else "info"
            self._tell(Change("battery_critical", active=active, severity=severity, message=text, details=details))

    def gps(self, fix_type: int, fix: str, now: float) -> None:
        """A sample of the GPS. Before the first fix nothing is lost."""
        has_fix = fix_type >= 3
        self._had_fix = self._had_fix or has_fix
        if not self._had_fix or not self._gps.sample(bad=not has_fix, good=has_fix, now=now):
            return
        if self._gps.active:
            text = f"the GPS has lost its position ({fix})"
            self._tell(Change("gps_lost", active=True, severity="warning", message=text, details={"fix": fix}))
        else:
            text = f"the GPS has its position again ({fix})"
            self._tell(Change("gps_lost", active=False, severity="info", message=text, details={"fix": fix}))

    def heartbeat(self, now: float) -> None:
        """A heartbeat: after ``link_back_after`` seconds of them a lost link is back."""
        if self._link.active and self._link.sample(bad=False, good=True, now=now):
            self._tell(
                Change("link_lost", active=False, severity="info", message="the vehicle is heard again", details={})
            )

    def silence(self, seconds: float) -> None:
        """Nothing was heard of the vehicle for so long."""
        if seconds >= self._limits.link_after and self._link.set(active=True):
            text = f"the vehicle was last heard {seconds:.1f} s ago"
            details = {"heartbeat_age_s": round(seconds, 1)}
            self._tell(Change("link_lost", active=True, severity="critical", message=text, details=details))
