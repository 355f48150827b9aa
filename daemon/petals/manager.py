"""All petals of one daemon: found, kept in the state asked for, and described."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog

from petalbus.daemon.petals.budget import Limits
from petalbus.daemon.petals.choices import Choices, Decisions, Yaml, read_yaml, words
from petalbus.daemon.petals.discovery import PATHS, Found, find, unload
from petalbus.daemon.petals.errors import ChoicesError, ChosenOtherwise, NotWanted, UnknownPetal
from petalbus.daemon.petals.life import InDaemon, Life
from petalbus.daemon.petals.managed import Managed, PetalState
from petalbus.daemon.petals.process import InProcess
from petalbus.daemon.petals.surroundings import Surroundings
from petalbus.daemon.petals.watchdog import Watchdog
from petalbus.handlers.mqtt.words import COMMAND, COMMANDS_AT_ONCE

if TYPE_CHECKING:
    from petalbus.daemon.bus.client import Bus
    from petalbus.daemon.http.mounts import PetalMounts

APP: Final = "petal-app-manager"
"""The app as which the proxies of the daemon's own process are on the bus."""

YAML: Final = "proxies.yaml"
DECISIONS: Final = "petals.json"
_FIRST_SECONDS: Final = 30.0

log: Final = structlog.get_logger(__name__)


class Connect(Protocol):
    """Makes a client of the bus for an app; more keywords are options of it."""

    def __call__(self, app: str, **options: Any) -> Bus:
        """A client that is not started yet."""
        ...


_HEARTBEAT_S: Final = 0.6


class PetalManager:
    """``run`` it as a part of the daemon. ``settings``: those whose names begin with ``petals_``, and the proxies'."""

    def __init__(
        self,
        settings: Any,
        *,
        data: Path,
        url: str,
        durability: str,
        connect: Connect,
        mounts: PetalMounts | None,
        report: Callable[..., None],
    ) -> None:
        self._settings = settings
        self._data = data
        self._url = url
        self._durability = durability
        self._connect = connect
        self._mounts = mounts
        self._report = report
        self._limits = Limits(restarts=self._setting("petals_restarts", 5))
        self._choices = Choices(settings, Yaml(), Decisions(data / DECISIONS))
        self._petals: dict[str, Managed] = {}
        self._claims: dict[str, Managed] = {}
        self._packages: dict[str, list[str]] = {}
        self._watchdog = Watchdog(self._packages, self._blocked)
        self._acting = asyncio.Lock()
        self._surroundings = Surroundings(url=url, bus=settings.bus, app=APP, data=data, settings=settings)
        self._surroundings.proxies.watch(self._proxies_changed)
        self._surroundings.watch_organization(self._organization_changed)

    async def start(self) -> None:
        """Find petals, and start those that shall run: the first ones of ``proxies.yaml``, then the others."""
        self._choices = await asyncio.to_thread(self._read_choices)
        self._watchdog.start()
        await self._look()
        first = [petal for petal in self._petals.values() if {*self._names(petal.found)} & {*self._choices.yaml.first}]
        if any(self._runs(petal)[0] for petal in self._petals.values()):
            await self._surroundings.start(self._choices.yaml.proxies)
        for some in (first, [petal for petal in self._petals.values() if petal not in first]):
            for petal in some:
                runs, why = self._runs(petal)
                await (petal.enable() if runs else petal.disable(why))
            if some is first and first:
                await self._until_settled(first)

    async def stop(self) -> None:
        """Stop all petals at once, then the proxies."""
        await asyncio.gather(*(petal.disable("the daemon stops") for petal in self._petals.values()))
        await self._surroundings.stop()
        self._watchdog.stop()

    async def act(self, name: str, action: str) -> dict[str, Any]:
        """``enable``, ``disable``, ``restart`` or ``reload`` one petal; what it is like then.

        Raises UnknownPetal, ChoicesError, and ValueError for another action. It is done to its end also when nobody
        waits for it any more.
        """
        acting = asyncio.create_task(self._act(name, action), name=f"petals-{action}-{name}")
        return await asyncio.shield(acting)

    async def _act(self, name: str, action: str) -> dict[str, Any]:
        async with self._acting:
            petal = await self._named(name)
            if action == "enable":
                await asyncio.to_thread(self._decide, petal, runs=True)
                await self._surroundings.start(self._choices.yaml.proxies)
                await petal.enable()
            elif action == "disable":
                await asyncio.to_thread(self._decide, petal, runs=False)
                await petal.disable("petalbus petals")
            elif action in ("restart", "reload"):
                await self._surroundings.start(self._choices.yaml.proxies)
                again = (lambda: unload(petal.found)) if action == "reload" else None
                await petal.restart(again)
            else:
                raise ValueError(f"{action!r} is no action; use enable, disable, restart or reload")
            await self._until_settled([petal])
            return petal.describe()

    def describe(self) -> list[dict[str, Any]]:
        """All petals, by name."""
        return [petal.describe() for petal in sorted(self._petals.values(), key=lambda petal: petal.name)]

    def statistics(self) -> dict[str, Any]:
        """How many petals are in which state, and the proxies."""
        states: dict[str, int] = {}
        for petal in self._petals.values():
            states[str(petal.state)] = states.get(str(petal.state), 0) + 1
        return {"states": states, "proxies": self._surroundings.proxies.describe()}

    def _read_choices(self) -> Choices:
        file = Path(self._setting("petals_file", self._data / YAML))
        decisions = Decisions(self._data / DECISIONS)
        decisions.load()
        try:
            yaml = read_yaml(file)
        except ChoicesError as error:
            log.error("the petals' file is ignored", error=str(error))  # noqa: TRY400  # the text says it all
            yaml = Yaml()
        return Choices(self._settings, yaml, decisions)

    async def _look(self) -> None:
        """Take petals in that were not known yet."""
        paths = words(self._setting("petals_paths", ()))
        for name, found in (await asyncio.to_thread(find, paths, self._choices.yaml.targets)).items():
            if name not in self._petals:
                self._petals[name] = self._managed(found)
                self._packages[name] = [_package(found)]

    async def _named(self, name: str) -> Managed:
        for look in (False, True):
            if look:
                await self._look()  # it may have been installed since
            for petal in self._petals.values():
                if name in petal.names:
                    return petal
        known = ", ".join(sorted(petal.name for petal in self._petals.values())) or "none"
        raise UnknownPetal(f"there is no petal {name!r}; known petals: {known}")

    def _managed(self, found: Found) -> Managed:
        isolation = self._choices.isolation(self._names(found))
        petal = Managed(
            found,
            lambda: self._life(petal),
            missing=self._missing,
            changed=self._changed,
            limits=self._limits,
            isolation=isolation,
        )
        petal.claim = lambda name: self._claim(name, petal)
        petal.release = lambda: self._release(petal)
        petal.judge = lambda: self._judge(petal)
        return petal

    def _names(self, found: Found, own: str | None = None) -> tuple[str, ...]:
        """What a petal is called: as it was found, and by itself as far as that is known."""
        known = own or self._choices.decisions.own_name(found.name)
        return (found.name,) if known in (None, found.name) else (found.name, str(known))

    def _decide(self, petal: Managed, *, runs: bool) -> None:
        names = self._names(petal.found, petal.name)
        self._choices.decisions.make(petal.found.name, runs=runs, also=names)

    async def _judge(self, petal: Managed) -> None:
        """The petal's own name is known now: does what was chosen without it hold?

        Raises NotWanted, ChosenOtherwise.
        """
        found = petal.found
        chosen = self._chosen(self._names(found))
        names = self._names(found, petal.name)
        try:
            await asyncio.to_thread(self._choices.decisions.learn, found.name, petal.name)
        except ChoicesError as error:
            log.warning("a petal's own name cannot be kept", petal=petal.name, error=str(error))
        runs, why = self._choices.runs(names, shipped=found.shipped, named=found.origin == PATHS)
        if not runs and not petal.was_asked_for:
            raise NotWanted(why)
        if self._chosen(names) != chosen:
            raise ChosenOtherwise(f"choices for {petal.name} differ from those for {found.name}")

    def _chosen(self, names: tuple[str, ...]) -> tuple[object, ...]:
        return self._choices.isolation(names), self._choices.needs(names)

    def _life(self, petal: Managed) -> Life:
        found = petal.found
        names = self._names(found, petal.name if petal.name != found.name else None)
        needs = self._choices.needs(names)
        timeout = self._setting("petals_handler_timeout", None)
        petal.isolation = self._choices.isolation(names)
        options = {
            # MQTT's commands come on top: neither they nor the petal's other work take the other's places
            "workers": self._setting("petals_concurrency", 4) + COMMANDS_AT_ONCE,
            "reserved": ((COMMAND, COMMANDS_AT_ONCE),),
            "window": self._setting("petals_queue", 64),
        }
        if petal.isolation != "process":
            return InDaemon(
                found,
                proxies=self._surroundings.proxies.mapping,
                # no other process is this app, so nobody judges its beats: half as many will do
                connect=lambda app: self._connect(app, heartbeat=_HEARTBEAT_S, **options),
                mounts=self._mounts,
                needs=needs,
                timeout=timeout,
                failures=self._limits.failures,
            )
        configuration = {
            "name": found.name,
            "origin": found.origin,
            "url": self._url,
            "bus": self._settings.bus,
            "data": str(self._data),
            "settings": _plain(self._settings),
            "options": {**options, "durability": self._durability, "beside_bus": True},
            "proxies": self._choices.yaml.proxies,
            "needs": needs,
            "timeout": timeout,
            "failures": self._limits.failures,
            "http": self._mounts is not None and self._mounts.options.enabled,
        }
        place = self._data / "run" / "petals" / f"{found.name}.sock"
        return InProcess(found, configuration, socket=place, mounts=self._mounts)

    def expected(self) -> frozenset[str]:
        """All names of the petals that run, or shall."""
        shall = [petal for petal in self._petals.values() if self._runs(petal)[0]]
        return frozenset(name for petal in shall for name in self._names(petal.found, petal.name))

    def _runs(self, petal: Managed) -> tuple[bool, str]:
        named = petal.found.origin == PATHS
        return self._choices.runs(self._names(petal.found), shipped=petal.found.shipped, named=named)

    def _claim(self, name: str, claimant: Managed) -> str | None:
        """Take a name for a petal; whose it is, where another one has it."""
        owner = self._claims.setdefault(name, claimant)
        return None if owner is claimant else owner.found.target

    def _release(self, claimant: Managed) -> None:
        for name in [name for name, owner in self._claims.items() if owner is claimant]:
            del self._claims[name]

    def _missing(self, names: tuple[str, ...]) -> dict[str, str]:
        return self._surroundings.proxies.missing(names)

    def _proxies_changed(self) -> None:
        for petal in self._petals.values():
            petal.proxies_changed()

    async def _organization_changed(self) -> None:
        await asyncio.gather(*(petal.organization_changed() for petal in self._petals.values()))

    def _changed(self, petal: Managed) -> None:
        self._packages[petal.found.name] = [_package(petal.found)]
        if self._mounts is not None and petal.state is not PetalState.RUNNING:
            self._mounts.set_state(petal.name, str(petal.state), petal.reason)
        if petal.state in (PetalState.RUNNING, PetalState.WAITING, PetalState.FAILED):
            self._report("petal", name=petal.name, state=str(petal.state), reason=petal.reason or None)

    def _blocked(self, name: str, seconds: float, where: str) -> None:
        petal = self._petals.get(name)
        if petal is not None:
            petal.blocks += 1
            log.warning("a petal holds up the event loop", petal=petal.name, seconds=round(seconds, 2), where=where)

    async def _until_settled(self, petals: list[Managed]) -> None:
        """Until none of them is on its way any more, for a while at most."""
        busy = (PetalState.STARTING, PetalState.STOPPING)
        try:
            async with asyncio.timeout(_FIRST_SECONDS):
                await asyncio.sleep(0)
                while any(petal.state in busy or petal.is_beginning for petal in petals):  # noqa: ASYNC110  # bounded, seldom
                    await asyncio.sleep(0.02)
        except TimeoutError:
            log.warning("petals take long to start", petals=[p.name for p in petals if p.state in busy])

    def _setting(self, name: str, default: Any) -> Any:
        value = getattr(self._settings, name, None)
        return default if value is None or value == "" else value


def _package(found: Found) -> str:
    """What the watchdog knows a petal by: its package, or of ours its own part."""
    package = found.module.partition(".")[0]
    return found.module if package == "petalbus" else package


def _plain(settings: Any) -> Mapping[str, Any]:
    """Settings as JSON can carry them."""
    plain: Mapping[str, Any] = settings.model_dump(mode="json")
    return plain
