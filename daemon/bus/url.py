"""Where the server is: the address forms that the bus understands.

``unix:///path/to/socket``, ``redis://[user[:password]@]host[:port]`` and ``rediss://...`` (TLS). Query parameters:
``ca``, ``cert``, ``key`` (files, for TLS), ``verify=no`` (a server name that its certificate does not carry).
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed address. ``path`` is set for a unix socket, ``host`` and ``port`` otherwise."""

    url: str
    path: str | None = None
    host: str = "127.0.0.1"
    port: int = 6379
    username: str | None = None
    password: str | None = None
    tls: bool = False
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    verify: bool = True

    @property
    def shown(self) -> str:
        """The address without its password, for messages."""
        if self.path is not None:
            return f"unix://{self.path}"
        return f"{'rediss' if self.tls else 'redis'}://{self.host}:{self.port}"

    def ssl_context(self) -> ssl.SSLContext | None:
        """The TLS settings, or None for a plain connection. Raises OSError when a named file cannot be read."""
        if not self.tls:
            return None
        context = ssl.create_default_context(cafile=self.ca)
        if self.cert is not None:
            context.load_cert_chain(self.cert, self.key)
        if not self.verify:
            context.check_hostname = False
        return context


def parse(url: str) -> Address:
    """Read an address; raises ValueError that says what is wrong and shows a correct one."""
    parts = urlsplit(url)
    secret, at, _ = parts.netloc.rpartition("@")
    shown = url.replace(secret + at, "", 1)  # an error is no place for a password
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    unknown = sorted(query.keys() - {"ca", "cert", "key", "verify"})
    if unknown:
        raise ValueError(
            f"address {shown!r} has the unknown parameter {unknown[0]!r}; there are ca, cert, key and verify"
        )
    if parts.scheme != "unix" and parts.path not in ("", "/", "/0"):
        raise ValueError(f"address {shown!r} names database {parts.path[1:]!r}; a bus has its server's database 0")
    files = {name: query.get(name) for name in ("ca", "cert", "key")}
    user = unquote(parts.username) if parts.username else None
    password = unquote(parts.password) if parts.password else None
    if parts.scheme == "unix":
        if not parts.path:
            raise ValueError(f"address {shown!r} has no socket path; write unix:///path/to/bus.sock")
        return Address(url, path=unquote(parts.path), username=user, password=password)
    if parts.scheme not in ("redis", "rediss"):
        raise ValueError(
            f"address {shown!r} is not understood; write unix:///path, redis://host:6379 or rediss://host:6379"
        )
    try:
        port = parts.port or 6379
    except ValueError as error:
        raise ValueError(f"address {shown!r}: {error}") from None
    return Address(
        url,
        host=parts.hostname or "127.0.0.1",
        port=port,
        username=user,
        password=password,
        tls=parts.scheme == "rediss",
        verify=query.get("verify", "yes") != "no",
        **files,
    )
