"""The server under the bus: the embedded one and its data directory, or the check of a configured one."""

from petalbus.daemon.server.check import ServerReport, check_server
from petalbus.daemon.server.discover import RunningBus, announce, discover, update, withdraw
from petalbus.daemon.server.embedded import EmbeddedServer
from petalbus.daemon.server.errors import (
    DataDirectoryInUse,
    NoRunningBus,
    ServerCrashLoop,
    ServerError,
    ServerNotFound,
    ServerStartError,
    ServerUnreachable,
    ServerUnsuitable,
)
from petalbus.daemon.server.find import ServerBinary, choose_server, find_servers
from petalbus.daemon.server.lock import DataLock

__all__ = [
    "DataDirectoryInUse",
    "DataLock",
    "EmbeddedServer",
    "NoRunningBus",
    "RunningBus",
    "ServerBinary",
    "ServerCrashLoop",
    "ServerError",
    "ServerNotFound",
    "ServerReport",
    "ServerStartError",
    "ServerUnreachable",
    "ServerUnsuitable",
    "announce",
    "check_server",
    "choose_server",
    "discover",
    "find_servers",
    "update",
    "withdraw",
]
