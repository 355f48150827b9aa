"""The embedded server's configuration: one text, written anew before each start.

Only options that Redis 7.0 and Valkey 7.2 both know: an unknown one keeps the server from starting.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final, Literal

from petalbus.daemon.paths import DataPaths

Fsync = Literal["everysec", "always"]

MIN_MEMORY_MB: Final = 16
"""Below this the server's own buffers leave no room for records."""

_TEXT: Final = """\
# Written by PetalBus before each start of the embedded server: changes made here are lost.

# Reached by this user alone, through a file.
port 0
unixsocket {socket}
unixsocketperm 700
tcp-backlog 128
daemonize no
supervised no
dir {directory}
logfile {log}
loglevel notice
always-show-logo no
set-proc-title no
enable-protected-configs no
enable-debug-command no
enable-module-command no

# What is acknowledged is kept: every write goes to the append-only file, no snapshots beside it.
databases 1
save ""
appendonly yes
appendfsync {fsync}
# ("no": petalbus itself brings the file to the disk every second, and no write ever waits in memory for an fsync.)
# A rewrite of the file does not suspend its fsync: the declared loss at a power cut holds at any time.
no-appendfsync-on-rewrite no
aof-use-rdb-preamble yes
aof-rewrite-incremental-fsync yes
auto-aof-rewrite-percentage 100
auto-aof-rewrite-min-size 64mb
# A tail that a power cut left half written is cut off and the rest loads.
aof-load-truncated yes
shutdown-timeout 5

# Full means refused, never silently thrown away. Buffers of clients that do not read count too, so they are bounded:
# the worst honest reply is 64 records of 1 MiB.
maxmemory {memory}mb
maxmemory-policy noeviction
maxmemory-clients 50%
maxclients 512
timeout 0
client-query-buffer-limit 80mb
proto-max-bulk-len 16mb
client-output-buffer-limit normal 256mb 128mb 30
client-output-buffer-limit pubsub 32mb 8mb 60

# Nothing long between two commands: big frees happen in a thread, and no huge pages to copy while a rewrite runs.
lazyfree-lazy-expire yes
lazyfree-lazy-server-del yes
lazyfree-lazy-user-del yes
lazyfree-lazy-user-flush yes
disable-thp yes
hz 10
dynamic-hz yes
busy-reply-threshold 5000
slowlog-log-slower-than 10000
slowlog-max-len 128
latency-monitor-threshold 100
"""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """What is chosen for an embedded server. ``memory_mb``: ceiling of the stored data in MiB."""

    paths: DataPaths
    memory_mb: int = 512
    fsync: Fsync = "everysec"

    def __post_init__(self) -> None:
        """Refuse values that the server would refuse later, or take in another sense."""
        if self.memory_mb < MIN_MEMORY_MB:
            raise ValueError(f"memory_mb: {self.memory_mb} is too little for a bus, at least {MIN_MEMORY_MB} (MiB)")
        if self.fsync not in ("everysec", "always"):
            raise ValueError(f"fsync: {self.fsync!r} is neither 'everysec' nor 'always'")

    def text(self) -> str:
        """The file's text."""
        return _TEXT.format(
            socket=_quote(str(self.paths.socket)),
            directory=_quote(str(self.paths.server_dir)),
            log=_quote(str(self.paths.server_log)),
            # everysec is done from outside: see petalbus.daemon.server.flush
            fsync="always" if self.fsync == "always" else "no",
            memory=self.memory_mb,
        )

    def digest(self) -> str:
        """Equal for two configurations with the same text: a running server with another one is not adopted."""
        return hashlib.blake2b(self.text().encode(), digest_size=16).hexdigest()


def _quote(value: str) -> str:
    """A value in the server's own quoting, whatever characters the directory's name has."""
    plain = "".join(
        chr(byte) if 0x20 <= byte < 0x7F and byte not in b'"\\' else f"\\x{byte:02x}"
        for byte in value.encode("utf-8", errors="surrogateescape")
    )
    return f'"{plain}"'
