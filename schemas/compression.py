"""Compressed payloads: zlib always, zstd where its package is installed. The record's ``encoding`` names which."""

from __future__ import annotations

import importlib
import zlib
from typing import Any, Final

from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.vocabulary import MAX_PAYLOAD_BYTES

_LIMIT: Final = f"at most {MAX_PAYLOAD_BYTES} bytes"
_ZSTD_WINDOW: Final = 8 * MAX_PAYLOAD_BYTES
"""Most memory that a frame may ask for to unfold: what every zstd decoder is expected to give."""


def compress(body: bytes, encoding: str) -> bytes:
    """Compress a payload; ``encoding`` is ``zlib`` or ``zstd``. Raises RecordInvalid when it is not available."""
    if encoding == "zlib":
        return zlib.compress(body, 1)
    if encoding == "zstd":
        return bytes(_zstandard().ZstdCompressor().compress(body))
    raise RecordInvalid("encoding", f"{encoding!r} is unknown", limit="zlib or zstd")


def decompress(raw: bytes, encoding: str) -> bytes:
    """Undo ``compress``; bounded, so that a small record cannot unfold into gigabytes. Raises RecordInvalid."""
    try:
        if encoding == "zlib":
            return _unzlib(raw)
        if encoding == "zstd":
            return _unzstd(raw)
    except (zlib.error, _zstd_error()) as error:
        raise RecordInvalid("data", f"is not {encoding} data: {error}") from None
    raise RecordInvalid("encoding", f"{encoding!r} is unknown", limit="zlib or zstd")


def _unzlib(raw: bytes) -> bytes:
    worker = zlib.decompressobj()
    body = worker.decompress(raw, MAX_PAYLOAD_BYTES + 1)
    if len(body) > MAX_PAYLOAD_BYTES:
        raise RecordInvalid("data", "unfolds to more than allowed", limit=_LIMIT)
    if not worker.eof or worker.unused_data:  # zlib itself does not mind a stream that was cut
        raise RecordInvalid("data", "is cut or has something behind its end", limit="one whole zlib stream")
    return body


def _unzstd(raw: bytes) -> bytes:
    module = _zstandard()
    if module.frame_content_size(raw) > MAX_PAYLOAD_BYTES:  # what a frame says of itself would be allocated at once
        raise RecordInvalid("data", "unfolds to more than allowed", limit=_LIMIT)
    worker = module.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    # a frame that does not tell its size gets no more than the limit; one that was cut is an error
    return bytes(worker.decompress(raw, max_output_size=MAX_PAYLOAD_BYTES, allow_extra_data=False))


def _zstandard() -> Any:
    try:
        return importlib.import_module("zstandard")
    except ImportError:
        raise RecordInvalid("encoding", "zstd is not installed", limit="petalbus[zstd] on both ends, or zlib") from None


def _zstd_error() -> type[Exception]:
    try:
        error: type[Exception] = importlib.import_module("zstandard").ZstdError
    except ImportError:
        return zlib.error
    return error
