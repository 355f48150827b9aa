"""URLs as people and logs may see them."""

from __future__ import annotations

import logging
from typing import Final
from urllib.parse import urlsplit


def shown_url(url: str) -> str:
    """A URL, or a path of one, without user, password, query and fragment: they may be secrets."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "(no URL)"
    if ":" in host:
        host = f"[{host}]"
    start = f"{parts.scheme}://{host}{'' if port is None else f':{port}'}" if parts.netloc else ""
    return f"{start}{parts.path}"


class _Hiding(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(
                shown_url(str(one)) if type(one).__module__.startswith("httpx") else one for one in record.args
            )
        return True


_HIDING: Final = _Hiding()


def hide_in_log() -> None:
    """httpx logs the whole URL of each request: from now on as ``shown_url`` has it."""
    logging.getLogger("httpx").addFilter(_HIDING)  # once: a filter that is there already is not added
