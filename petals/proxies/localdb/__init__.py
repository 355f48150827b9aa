"""The local database: SQL, documents by key ("items") and a queue of changes to be synchronised, in one file."""

from __future__ import annotations

from petalbus.petals.proxies.context import ProxyContext
from petalbus.petals.proxies.localdb.errors import (
    ConstraintFailed,
    DatabaseBusy,
    DatabaseDamaged,
    DatabaseError,
    DiskFull,
    MigrationRefused,
    QueryFailed,
    QueryRefused,
    QueueFull,
)
from petalbus.petals.proxies.localdb.proxy import (
    FILE_NAME,
    GET_DATA_URL,
    SCAN_DATA_URL,
    SET_DATA_URL,
    UPDATE_DATA_URL,
    LocalDBProxy,
)
from petalbus.petals.proxies.localdb.queue import Change
from petalbus.petals.proxies.localdb.sql import Rows
from petalbus.petals.proxies.localdb.transaction import Transaction
from petalbus.petals.proxies.localdb.words import ALL

__all__ = [
    "LocalDBProxy",
    "ALL",
    "Rows",
    "Change",
    "Transaction",
    "DatabaseError",
    "QueryRefused",
    "QueryFailed",
    "ConstraintFailed",
    "MigrationRefused",
    "QueueFull",
    "DiskFull",
    "DatabaseDamaged",
    "DatabaseBusy",
    "make",
]


def make(context: ProxyContext) -> LocalDBProxy:
    """The proxy ``db`` for a daemon or a petal's process.

    The organisation manager asks this proxy from then on where its file says nothing.
    """
    organization = context.organization
    proxy = LocalDBProxy(
        context.setting("get_data_url", GET_DATA_URL),
        context.setting("scan_data_url", SCAN_DATA_URL),
        context.setting("update_data_url", UPDATE_DATA_URL),
        context.setting("set_data_url", SET_DATA_URL),
        file=context.setting("localdb_file", context.data / FILE_NAME),
        url=context.setting("localdb_url"),
        machine_id=context.setting("machine_id"),
        organization=organization,
        sync_tables=[name.strip() for name in context.setting("cloud_sync_tables", "").split(",") if name.strip()],
    )
    if organization is not None and organization.fallback is None:
        organization.fallback = lambda: proxy.stored_organization_id
    return proxy
