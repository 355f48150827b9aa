"""The one shape in which a proxy answers an error, and what it raises where the specification says that it raises.

ProxyError (a RuntimeError: petals catch that)
├── ProxyNotReady      used before ``start``, after ``stop``, or while what it stands for is away
└── ProxyTimeout       (also a TimeoutError) no answer within the time allowed
"""

from __future__ import annotations

from typing import Any


class ProxyError(RuntimeError):
    """Base of what proxies raise. ``code`` is stable across versions."""

    code = "proxy_error"


class ProxyNotReady(ProxyError):
    """What the proxy stands for is not there now."""

    code = "proxy_not_ready"


class ProxyTimeout(ProxyError, TimeoutError):
    """No answer came in time."""

    code = "proxy_timeout"


def error_result(message: str, status: int = 500, **more: Any) -> dict[str, Any]:
    """An error as proxies answer it: ``{"error": message, "status": status}``, with HTTP's meaning of the number."""
    return {"error": message, "status": status, **more}
