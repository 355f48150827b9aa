"""A certificate authority and certificates for tests, made with the `openssl` program."""

from __future__ import annotations

import subprocess
from pathlib import Path


def make_certificates(directory: Path) -> None:
    """Write ca.crt, and server and client certificates with their keys, into ``directory``.

    With the key usages that a strict checker (Python 3.13) asks for. Valid for two days.
    """
    _run(
        *_new_key(directory / "ca.key"),
        *("-x509", "-days", "2", "-subj", "/CN=PetalBus test authority", "-out", str(directory / "ca.crt")),
        *("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign"),
    )
    _issue(directory, "server", "serverAuth", "subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    _issue(directory, "client", "clientAuth", "")


def _issue(directory: Path, name: str, usage: str, more: str) -> None:
    extensions = directory / f"{name}.ext"
    extensions.write_text(
        "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n"
        f"extendedKeyUsage={usage}\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n{more}"
    )
    request = directory / f"{name}.csr"
    _run(*_new_key(directory / f"{name}.key"), "-subj", f"/CN={name}", "-out", str(request))
    _run(
        *("openssl", "x509", "-req", "-in", str(request), "-days", "2", "-extfile", str(extensions)),
        *("-CA", str(directory / "ca.crt"), "-CAkey", str(directory / "ca.key"), "-CAcreateserial"),
        *("-out", str(directory / f"{name}.crt")),
    )


def _new_key(path: Path) -> tuple[str, ...]:
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
    return ("openssl", "req", "-new", "-nodes", *curve, "-keyout", str(path))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
