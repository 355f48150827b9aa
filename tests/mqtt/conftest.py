"""Fixtures of the MQTT link's tests: brokers, a real one and one that misbehaves."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from support.broker import Mosquitto
from support.certificates import make_certificates
from support.odd_broker import OddBroker


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ca.crt, and certificates and keys of a server and a client."""
    if shutil.which("openssl") is None:
        pytest.skip("the certificates are made with the openssl program, which is not here")
    directory = tmp_path_factory.mktemp("certificates")
    make_certificates(directory)
    return directory


@pytest.fixture
def mosquitto() -> Iterator[Mosquitto]:
    """A Mosquitto of the test's own, to kill and freeze. It writes to memory: it syncs its file for each message."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as directory:
        broker = Mosquitto(Path(directory))
        try:
            broker.start()
            yield broker
        finally:
            broker.kill()


@pytest.fixture(scope="module")
def tls_mosquitto(tmp_path_factory: pytest.TempPathFactory, certificates: Path) -> Iterator[Mosquitto]:
    """A Mosquitto that also speaks TLS and wants client certificates; shared."""
    broker = Mosquitto(tmp_path_factory.mktemp("mosquitto"), certificates)
    try:
        broker.start()
        yield broker
    finally:
        broker.kill()


@pytest.fixture
async def odd() -> AsyncIterator[OddBroker]:
    """A broker that misbehaves on request."""
    async with OddBroker() as broker:
        yield broker
