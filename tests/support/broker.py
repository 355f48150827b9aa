"""A real Mosquitto for tests: plain, with TLS and client certificates, with users; killed at will."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from support.servers import READY_SECONDS, free_port, poll_until

USER, PASSWORD = "drone", "secret"
FORBIDDEN = "forbidden/topic"

_LISTENERS = """
per_listener_settings true
persistence true
persistence_location {directory}/
autosave_on_changes true
autosave_interval 1
max_queued_messages 0
user {user}
log_type all

listener {port} 127.0.0.1
allow_anonymous true

listener {login_port} 127.0.0.1
allow_anonymous false
password_file {directory}/passwords
acl_file {directory}/acl
"""

_TLS = """
listener {tls_port} 127.0.0.1
allow_anonymous true
cafile {certificates}/ca.crt
certfile {certificates}/server.crt
keyfile {certificates}/server.key
require_certificate true
"""


def program(name: str) -> str:
    """Path of a program of the broker's package; the test is skipped when it is not installed."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed: apt-get install mosquitto mosquitto-clients")
    return found


class Mosquitto:
    """A broker that keeps its sessions over kill -9. ``port`` is open to all, ``login_port`` wants a password."""

    def __init__(self, directory: Path, certificates: Path | None = None, *, careful: bool = True) -> None:
        """``careful``: it saves at every change, and logs everything; without, it is as quick as it can be."""
        self.port, self.login_port, self.tls_port = free_port(), free_port(), free_port()
        self._program = program("mosquitto")
        self._directory = directory
        self._config = directory / "mosquitto.conf"
        self._process: subprocess.Popen[bytes] | None = None
        names = {**vars(self), "directory": directory, "certificates": certificates, "user": getpass.getuser()}
        text = _LISTENERS.format(**names) + (_TLS.format(**names) if certificates else "")
        if not careful:
            text = text.replace("autosave_interval 1\n", "").replace("autosave_on_changes true\n", "")
            text = text.replace("log_type all", "log_type error")
        self._config.write_text(text)
        (directory / "acl").write_text(f"user {USER}\ntopic readwrite allowed/#\ntopic deny {FORBIDDEN}\n")
        passwords = directory / "passwords"
        passwords.touch(mode=0o600)
        subprocess.run([program("mosquitto_passwd"), "-b", str(passwords), USER, PASSWORD], check=True, timeout=10)

    @property
    def log(self) -> str:
        """What it has said so far."""
        return (self._directory / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start it and wait until it listens."""
        assert self._process is None, "it runs already"
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, "-c", str(self._config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        poll_until(self._listens, f"mosquitto listens; log: {self._directory / 'log'}")

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log[-2000:]
        with socket.socket() as end:
            return end.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def kill_saved(self) -> None:
        """SIGKILL at a moment when all that it has confirmed is in its file: it confirms before it saves."""
        assert self._process is not None
        until = time.monotonic() + READY_SECONDS
        while time.monotonic() < until:
            self._process.send_signal(signal.SIGSTOP)
            lines = self.log.splitlines()[-200:]
            told = [number for number, line in enumerate(lines) if "Received PUBLISH" in line]
            saved = [number for number, line in enumerate(lines[:-1]) if "Saving in-memory database" in line]
            if saved and (not told or saved[-1] > told[-1]):
                break
            self._process.send_signal(signal.SIGCONT)
            time.sleep(0.005)
        self.kill()

    def restart(self) -> None:
        """Kill -9 and start again with what it has stored."""
        self.kill()
        self.start()

    def signal(self, number: signal.Signals) -> None:
        """SIGSTOP freezes it, SIGCONT thaws it."""
        assert self._process is not None
        os.kill(self._process.pid, number)

    def publish(self, topic: str, payload: str, *options: str) -> None:
        """Publish with mosquitto_pub, quality of service 1."""
        where = ("-h", "127.0.0.1", "-p", str(self.port), "-q", "1")
        command = (program("mosquitto_pub"), *where, "-t", topic, "-m", payload, *options)
        subprocess.run(command, check=True, timeout=10, capture_output=True)
