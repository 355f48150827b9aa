"""Which petals run, and how: ``proxies.yaml`` of existing installations, our own settings, and what people decided.

    petalbus petals enable|disable (kept in <data>/petals.json)  >  settings  >  proxies.yaml  >  everything found runs

A petal is meant by its own name or by the name under which it was found. The petals that ship with PetalBus run only
where somebody names them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog

from petalbus.daemon.petals.errors import ChoicesError

_KNOWN: Final = frozenset(
    ("enabled_petals", "startup_petals", "enabled_proxies", "petals", "petal_dependencies", "proxy_dependencies")
)
_ISOLATIONS: Final = ("daemon", "process")

log: Final = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Yaml:
    """What ``proxies.yaml`` says. None: it says nothing about that."""

    enabled: frozenset[str] | None = None
    first: tuple[str, ...] = ()
    """Petals that start before the others."""

    proxies: tuple[str, ...] | None = None
    targets: Mapping[str, str] = field(default_factory=dict)
    needs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    isolation: Mapping[str, str] = field(default_factory=dict)


def read_yaml(path: Path) -> Yaml:
    """Read the file; one that is not there says nothing. Blocks. Raises ChoicesError that says where it is broken."""
    import yaml  # noqa: PLC0415  # only installations that have the file need it

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return Yaml()
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ChoicesError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if content is None:
        return Yaml()
    if not isinstance(content, dict):
        raise ChoicesError(f"{path}: the whole must be a mapping, it is {type(content).__name__}")
    for name in content.keys() - _KNOWN - {"isolation"}:
        log.warning("a key of the petals' file is not known and ignored", file=str(path), key=name)
    enabled, first = _names(path, content, "enabled_petals"), _names(path, content, "startup_petals")
    proxies = _names(path, content, "enabled_proxies")
    isolation = _texts(path, content, "isolation")
    for name, where in isolation.items():
        if where not in _ISOLATIONS:
            raise ChoicesError(f"{path}: isolation of {name!r} is {where!r}; use daemon or process")
    return Yaml(
        enabled=None if enabled is None and first is None else frozenset((*(enabled or ()), *(first or ()))),
        first=first or (),
        proxies=proxies,
        targets=_texts(path, content, "petals"),
        needs={name: tuple(needs) for name, needs in _lists(path, content, "petal_dependencies").items()},
        isolation=isolation,
    )


class Choices:
    """All sources together. ``settings``: an object with those whose names begin with ``petals_``."""

    def __init__(self, settings: Any, yaml: Yaml, decisions: Decisions) -> None:
        self.yaml = yaml
        self.decisions = decisions
        self._enabled = frozenset(words(getattr(settings, "petals_enabled", None)))
        self._disabled = frozenset(words(getattr(settings, "petals_disabled", None)))
        self._isolation = getattr(settings, "petals_isolation", None) or "daemon"
        self._isolated = frozenset(words(getattr(settings, "petals_isolated", None)))

    def runs(self, names: Iterable[str], *, shipped: bool = False, named: bool = False) -> tuple[bool, str]:
        """Whether a petal of these names runs, and who said so. ``named``: a setting names its class.

        A decision under the first name counts before one under another.
        """
        names = tuple(names)
        for name in names:
            if name in self.decisions:
                return self.decisions[name], "petalbus petals"
        names = frozenset(names)
        if names & self._disabled:
            return False, "setting petals_disabled"
        if names & self._enabled:
            return True, "setting petals_enabled"
        if named:
            return True, "setting petals_paths"
        if self._enabled:
            return False, "setting petals_enabled names others"
        if self.yaml.enabled is not None:
            if names & self.yaml.enabled:
                return True, "proxies.yaml"
            return False, "proxies.yaml does not enable it"
        return (False, "it ships with PetalBus; enable it to use it") if shipped else (True, "found")

    def isolation(self, names: Iterable[str]) -> str:
        """``daemon`` or ``process``."""
        names = frozenset(names)
        if names & self._isolated:
            return "process"
        return next((where for name, where in self.yaml.isolation.items() if name in names), self._isolation)

    def needs(self, names: Iterable[str]) -> tuple[str, ...]:
        """Proxies that ``proxies.yaml`` says a petal needs."""
        return tuple(dict.fromkeys(need for name in names for need in self.yaml.needs.get(name, ())))


class Decisions:
    """What people switched on and off at run time, kept over restarts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._made: dict[str, bool] = {}
        self._own_names: dict[str, str] = {}

    def load(self) -> None:
        """Read the file. Blocks. One that is damaged is said, and counts as empty."""
        try:
            told = json.loads(self._path.read_text(encoding="utf-8"))
            self._made = {str(name): bool(runs) for name, runs in told["enabled"].items()}
            self._own_names = {str(found): str(own) for found, own in told.get("own_names", {}).items()}
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            log.warning("what was decided about petals cannot be read", file=str(self._path), error=str(error))

    def __contains__(self, name: str) -> bool:
        return name in self._made

    def __getitem__(self, name: str) -> bool:
        return self._made[name]

    def own_name(self, found: str) -> str | None:
        """The name that a petal gave itself when it ran last, if that is another one."""
        return self._own_names.get(found)

    def make(self, name: str, *, runs: bool, also: Iterable[str] = ()) -> None:
        """Decide about the petal that was found under ``name``, and is ``also`` known by others; keep it. Blocks.

        Raises ChoicesError when it cannot be kept: it holds until the next start.
        """
        for other in also:
            self._made.pop(other, None)
        self._made[name] = runs
        self._keep()

    def learn(self, found: str, own: str) -> None:
        """Keep a petal's own name. Blocks. Raises ChoicesError."""
        if own != found and self._own_names.get(found) != own:
            self._own_names[found] = own
            self._keep()

    def _keep(self) -> None:
        part = self._path.with_name(f"{self._path.name}.part")
        try:
            with part.open("w", encoding="utf-8") as file:
                json.dump({"enabled": self._made, "own_names": self._own_names}, file, indent=1, sort_keys=True)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self._path)
        except OSError as error:
            raise ChoicesError(f"{self._path} cannot be written ({error.strerror or error})") from error


def words(given: str | Iterable[str] | None) -> tuple[str, ...]:
    """Names from a list, or from a text with commas."""
    if given is None:
        return ()
    parts = given.split(",") if isinstance(given, str) else given
    return tuple(word for part in parts if (word := str(part).strip()))


def _names(path: Path, content: Mapping[str, Any], key: str) -> tuple[str, ...] | None:
    value = content.get(key)
    if value is None:
        return () if key in content else None
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ChoicesError(f"{path}: {key} must be a list of names")
    return tuple(value)


def _texts(path: Path, content: Mapping[str, Any], key: str) -> dict[str, str]:
    value = content.get(key) or {}
    if not isinstance(value, dict) or not all(isinstance(one, str) for one in (*value, *value.values())):
        raise ChoicesError(f"{path}: {key} must map names to texts")
    return dict(value)


def _lists(path: Path, content: Mapping[str, Any], key: str) -> dict[str, list[str]]:
    value = content.get(key) or {}
    if not isinstance(value, dict):
        raise ChoicesError(f"{path}: {key} must map names to lists of names")
    return {str(name): list(_names(path, value, name) or ()) for name in value}
