"""LocalDBProxy: SQL, items and a sync queue in one SQLite file; the items at a LocalDB service where one is given."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from petalbus.daemon.paths import DataPaths
from petalbus.petals.machine import find_machine_id
from petalbus.petals.organization import get_organization_manager
from petalbus.petals.proxies.errors import ProxyNotReady
from petalbus.petals.proxies.localdb.errors import DatabaseError, QueryFailed
from petalbus.petals.proxies.localdb.http import Addresses, HttpItems
from petalbus.petals.proxies.localdb.items import INSTANCES, ItemCalls, ItemStore, NoItem
from petalbus.petals.proxies.localdb.local_items import LocalItems
from petalbus.petals.proxies.localdb.queue import MAX_CHANGES
from petalbus.petals.proxies.localdb.sql import SqlCalls
from petalbus.petals.proxies.localdb.store import MAX_BYTES
from petalbus.petals.proxies.localdb.transaction import Transaction, at_home, joined
from petalbus.petals.proxies.localdb.upkeep import Upkeep

T = TypeVar("T")

GET_DATA_URL: Final = "/drone/onBoard/config/getData"
SCAN_DATA_URL: Final = "/drone/onBoard/config/scanData"
UPDATE_DATA_URL: Final = "/drone/onBoard/config/updateData"
SET_DATA_URL: Final = "/drone/onBoard/config/setData"
PORT: Final = 3000
FILE_NAME: Final = "local.db"
_LEARN_AGAIN: Final = 5.0

logger = logging.getLogger(__name__)


class Organization(Protocol):
    """What is asked of an OrganizationManager."""

    @property
    def organization_id(self) -> str | None:
        """The organisation's id."""

    @property
    def machine_id(self) -> str | None:
        """This machine's id."""


class LocalDBProxy(SqlCalls, ItemCalls, Upkeep):
    """The proxy ``db``. ``file``: the SQLite file (default: ``local.db`` in the data directory).

    ``url``, or ``host`` and ``port``: a LocalDB service that holds the items; without them they are in the file. SQL
    and the sync queue are always in the file. ``machine_id``: this machine's id, where it is not the organisation
    manager's. ``sync_tables``: items of these tables are appended to the sync queue with each write. ``max_bytes``: how
    large the file may become. ``max_changes``: how many changes the sync queue takes.
    """

    def __init__(  # noqa: PLR0913  # the specification's seven, and ours by keyword
        self,
        get_data_url: str = GET_DATA_URL,
        scan_data_url: str = SCAN_DATA_URL,
        update_data_url: str = UPDATE_DATA_URL,
        set_data_url: str = SET_DATA_URL,
        host: str | None = None,
        port: int = PORT,
        debug: bool = False,
        *,
        file: Path | str | None = None,
        url: str | None = None,
        machine_id: str | None = None,
        organization: Organization | None = None,
        sync_tables: Collection[str] = (),
        max_bytes: int = MAX_BYTES,
        max_changes: int = MAX_CHANGES,
    ) -> None:
        super().__init__(None if file is None else Path(file).expanduser(), max_bytes)
        root = url or (f"http://{host}:{port}" if host else None)
        self.debug = debug
        self._sync_tables = frozenset(sync_tables)
        self._max_changes = max_changes
        self._service: HttpItems | None = None
        self._addresses = (
            Addresses(root.rstrip("/"), get_data_url, scan_data_url, update_data_url, set_data_url) if root else None
        )
        self._local = LocalItems(self._own, max_changes)
        self._given_machine_id = machine_id
        self._own_machine_id: str | None = None
        self._organization = organization
        self._stored_organization_id: str | None = None
        self._robot_type_id: str | None = None
        self._learned_at = 0.0
        self._learning: asyncio.Task[None] | None = None

    @property
    def backend(self) -> str:
        """Where the items are: ``sqlite`` or ``http``."""
        return "sqlite" if self._addresses is None else "http"

    @property
    def file(self) -> Path | None:
        """The SQLite file; None before ``start`` when none was given."""
        return self._file

    @property
    def machine_id(self) -> str | None:
        """This machine's id."""
        return self._given_machine_id or self._manager().machine_id or self._own_machine_id

    @property
    def organization_id(self) -> str | None:
        """The organisation's id: the organisation manager's, else the one in this machine's instance item."""
        return self._manager().organization_id or self.stored_organization_id

    @property
    def stored_organization_id(self) -> str | None:
        """The organisation's id in this machine's item of ``config-robot_instances``."""
        self._learn_when_old()
        return self._stored_organization_id

    @property
    def robot_type_id(self) -> str | None:
        """The robot's type in this machine's item of ``config-robot_instances``."""
        self._learn_when_old()
        return self._robot_type_id

    def transaction(self) -> Transaction:
        """``async with db.transaction() as tx``: all that is done in it, or nothing."""
        return Transaction(self._loop, self._opened)

    async def start(self) -> None:
        """Open the file. Does not fail when that, or the service, is not possible now: ``reason`` tells."""
        if self._started:
            return
        if self._file is None:
            self._file = DataPaths.of().root / FILE_NAME
        self._own_machine_id = self.machine_id
        if self._own_machine_id is None:
            found = await asyncio.to_thread(find_machine_id, self._file.parent)
            self._own_machine_id = found.value
        self._started = True
        self._backoff.reset()
        with contextlib.suppress(ProxyNotReady):
            await self._opened()
        if self._addresses is None:
            await self._find_service()
        else:
            self._service = HttpItems(self._addresses, self._reached, debug=self.debug)
            self._service_problem = f"the LocalDB service at {self._addresses.root} has not answered yet"
            self._settle()
            self._try_again()

    async def stop(self) -> None:
        """Close the file and the connections. May be called twice."""
        if self._learning is not None:
            self._learning.cancel()
            await asyncio.wait([self._learning])
        await self._close_link()
        service, self._service = self._service, None
        if service is not None:
            await service.close()

    async def health_check(self) -> dict[str, Any]:
        """As told by ``Upkeep.health_check``, and which machine this is and where its items are."""
        health = await super().health_check()
        return health | {
            "backend": self.backend,
            "url": self._addresses.root if self._addresses is not None else None,
            "machine_id": self.machine_id,
            "organization_id": self.organization_id,
            "robot_type_id": self.robot_type_id,
        }

    def _get_machine_id(self) -> str | None:
        """This machine's id; petals call it."""
        return self.machine_id

    def _manager(self) -> Organization:
        return self._organization if self._organization is not None else get_organization_manager()

    def _machine(self) -> str:
        if (machine := self.machine_id) is None:
            raise ProxyNotReady("this machine's id is not known: the local database is not started")
        return machine

    def _items(self) -> ItemStore:
        if self._addresses is None:
            return self._local
        if self._service is None:
            raise ProxyNotReady("the local database cannot be used: not started")
        return self._service

    async def _perform(self, work: Callable[[sqlite3.Connection], T], *, writes: bool, whole: bool = False) -> T:
        mine = joined(self._opened)
        if mine is not None:
            return await mine.part(work, whole=whole)
        return await at_home(self._loop, self._alone, work, writes, whole)

    async def _alone(self, work: Callable[[sqlite3.Connection], T], writes: bool, whole: bool) -> T:
        database = await self._opened()
        if not writes:
            try:
                return await database.read(work)
            except QueryFailed as error:
                if not error.sqlite.startswith("SQLITE_READONLY"):
                    raise
        return await database.write(database.whole(work) if whole else work, trusted=whole)

    async def _own(self, work: Callable[[sqlite3.Connection], T], *, writes: bool) -> T:
        mine = joined(self._opened)
        if mine is not None:
            return await mine.run(work, True)
        database = await self._opened()
        return await (database.write(work, trusted=True) if writes else database.read(work, trusted=True))

    def _reached(self, problem: str) -> None:
        self._service_problem = problem
        if problem:
            self._backoff.failed()
        else:
            self._backoff.reset()
        self._settle()

    async def _find_service(self) -> None:
        """Read this machine's instance item: it tells whether the items can be reached, and what it says is wanted."""
        self._learned_at = time.monotonic()
        try:
            machine = self._machine()
            self._saw(INSTANCES, machine, await self._items().get(machine, INSTANCES, "id", machine))
        except NoItem:
            self._saw(INSTANCES, self.machine_id or "", {"organization_id": None, "robot_type_id": None})
        except (ProxyNotReady, DatabaseError) as error:
            logger.debug("this machine's instance item cannot be read: %s", error)

    def _saw(self, table: str, value: str, item: Mapping[str, Any]) -> None:
        if table != INSTANCES or value != self.machine_id:
            return
        self._robot_type_id = _word(item.get("robot_type_id", self._robot_type_id))
        stored = _word(item.get("organization_id", self._stored_organization_id))
        if stored != self._stored_organization_id:
            self._stored_organization_id = stored
            nudge = getattr(self._manager(), "nudge", None)
            if nudge is not None:
                nudge()

    def _learn_when_old(self) -> None:
        """Another process may have written the item. From any thread; the answer is there the next time."""
        known = self._robot_type_id is not None and self._stored_organization_id is not None
        if not self._started or (known and self._addresses is not None):
            return
        home = self._loop
        if time.monotonic() - self._learned_at > _LEARN_AGAIN and home is not None and not home.is_closed():
            self._learned_at = time.monotonic()
            home.call_soon_threadsafe(self._learn)

    def _learn(self) -> None:
        if self._started and (self._learning is None or self._learning.done()):
            self._learning = asyncio.create_task(self._find_service(), name="localdb-learn")


def _word(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
