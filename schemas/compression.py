"""Compressed payloads: zlib always, zstd where its package is installed. The record's ``encoding`` names which."""

from __future__ import annotations

import importlib
import zlib
from typing import Any, Final

from petalbus.schemas.errors import RecordInvalid
from petalbus.schemas.vocabulary import MAX_PAYLOAD_BYTES

_LIMIT: Final = f"at most {MAX_PAYLOAD_BYTES} bytes"


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
            worker = zlib.decompressobj()
            body = worker.decompress(raw, MAX_PAYLOAD_BYTES)
            if worker.unconsumed_tail:
                raise RecordInvalid("data", "unfolds to more than allowed", limit=_LIMIT)
            return body
        if encoding == "zstd":
            with _zstandard().ZstdDecompressor().stream_reader(raw) as stream:
                body = bytes(stream.read(MAX_PAYLOAD_BYTES + 1))
            if len(body) > MAX_PAYLOAD_BYTES:
                raise RecordInvalid("data", "unfolds to more than allowed", limit=_LIMIT)
            return body
    except (zlib.error, _zstd_error()) as error:
        raise RecordInvalid("data", f"is not {encoding} data: {error}") from None
    raise RecordInvalid("encoding", f"{encoding!r} is unknown", limit="zlib or zstd")


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
