"""TLS: client certificates, what is asked of the server, and a clear state for each file that is wrong."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from petalbus.handlers.mqtt.direct.errors import LinkFailure
from petalbus.handlers.mqtt.direct.tls import AWS_ALPN, alpn, make_context, validity
from petalbus.handlers.mqtt.options import DirectOptions

from support.broker import Mosquitto
from support.certificates import make_certificates
from support.mqtt_link import Store, link, outgoing, until
from support.procs import Children


def files(directory: Path, **other: Any) -> dict[str, Any]:
    """The settings for a client with the certificates of a directory."""
    names = {"ca": directory / "ca.crt", "cert": directory / "client.crt", "key": directory / "client.key"}
    return {"tls": True, **names, **other}


async def test_messages_both_ways_over_tls(tls_mosquitto: Mosquitto, certificates: Path) -> None:
    """S-160: with a client certificate, to a broker that wants one."""
    async with link(tls_mosquitto.tls_port, ["tls"], **files(certificates)) as running:
        await running.connected()
        assert await running.send(outgoing(1, "tls")) == 0
        await until(lambda: running.store.payloads == [b"1"], lambda: "it came")


def test_on_the_other_event_loop(tls_mosquitto: Mosquitto, certificates: Path) -> None:
    """The daemon runs on uvloop, whose transports are of another class: messages, a refused certificate, the end."""
    uvloop = pytest.importorskip("uvloop")

    async def work() -> None:
        async with link(tls_mosquitto.tls_port, ["uv"], **files(certificates)) as running:
            await running.connected()
            assert await running.send(outgoing(1, "uv")) == 0
            await until(lambda: running.store.payloads == [b"1"], lambda: "it came")
        async with link(tls_mosquitto.tls_port, **files(certificates, cert=None, key=None)) as running:
            await running.problem("tls-certificate-refused")
        async with link(1) as running:
            await running.problem("refused")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work())


@pytest.mark.parametrize(
    ("change", "problem", "word"),
    [
        ({"cert": None, "key": None}, "tls-certificate-refused", "set certificate and key"),
        ({"ca": None}, "tls-ca-unknown", "ca file"),
        ({"cert": "stranger/client.crt", "key": "stranger/client.key"}, "tls-certificate-refused", "authority"),
        ({"ca": "stranger/ca.crt"}, "tls-ca-unknown", "ca file"),
        ({"key": "server.key"}, "key-mismatch", "does not belong"),
        ({"key": "missing.key"}, "file-missing", "missing.key"),
        ({"ca": "missing.crt"}, "file-missing", "missing.crt"),
        ({"cert": "."}, "file-unreadable", "cannot be read"),
    ],
)
async def test_a_wrong_certificate_is_a_clear_state(
    tls_mosquitto: Mosquitto, certificates: Path, change: dict[str, str | None], problem: str, word: str
) -> None:
    """With a real broker: each mistake has its word, and the attempts become rare."""
    stranger = certificates / "stranger"
    if not stranger.exists():
        stranger.mkdir()
        make_certificates(stranger)
    given = {name: None if path is None else certificates / path for name, path in change.items()}
    options = {**files(certificates), **given}
    async with link(tls_mosquitto.tls_port, retry_first=0.2, **options) as running:
        state = await running.problem(problem)
        assert word in state.reason, state
        await asyncio.sleep(0.4)
        assert running.transport.describe()["attempts"] <= 4


async def test_tls_where_there_is_none_and_the_other_way_round(tls_mosquitto: Mosquitto, certificates: Path) -> None:
    """The wrong port, in both directions."""
    async with link(tls_mosquitto.port, connect_timeout=1.0, **files(certificates)) as running:
        await until(lambda: running.transport.state.problem, lambda: "a problem")
        assert "TLS" in running.transport.state.reason
    async with link(tls_mosquitto.tls_port, connect_timeout=1.0) as running:
        assert "without TLS" in (await running.problem("closed-by-broker")).reason


class TlsServer:
    """Only looks at how it is greeted, and lets nobody in."""

    def __init__(self, certificates: Path) -> None:
        self.names: list[str | None] = []
        self.protocols: list[str | None] = []
        self.versions: list[str | None] = []
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.load_cert_chain(certificates / "server.crt", certificates / "server.key")
        self.context.set_alpn_protocols([AWS_ALPN])
        self.context.sni_callback = lambda _, name, __: self.names.append(name)

    async def greeted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        end = writer.get_extra_info("ssl_object")
        self.protocols.append(end.selected_alpn_protocol())
        self.versions.append(end.version())
        writer.close()


async def test_the_server_learns_its_name_and_the_protocol(certificates: Path) -> None:
    """AWS IoT needs the host's name (SNI), and on port 443 ALPN; a certificate for another name is refused."""
    server = TlsServer(certificates)
    async with await asyncio.start_server(server.greeted, "127.0.0.1", 0, ssl=server.context) as listening:
        port = listening.sockets[0].getsockname()[1]
        async with link(port, host="localhost", alpn=AWS_ALPN, **files(certificates)):
            await until(lambda: server.protocols, lambda: "a greeting")
    assert server.names[0] == "localhost"
    assert server.protocols[0] == AWS_ALPN
    assert server.versions[0] in ("TLSv1.2", "TLSv1.3")
    async with await asyncio.start_server(server.greeted, "127.0.0.2", 0, ssl=server.context) as listening:
        port = listening.sockets[0].getsockname()[1]
        async with link(port, host="127.0.0.2", **files(certificates)) as running:
            await running.problem("tls-wrong-host")


def test_the_protocol_is_asked_for_where_it_is_needed() -> None:
    """On port 443 of AWS IoT by itself; elsewhere only where it is set."""
    assert alpn(DirectOptions(host="x-ats.iot.eu-west-1.amazonaws.com", port=443)) == AWS_ALPN
    assert alpn(DirectOptions(host="x-ats.iot.eu-west-1.amazonaws.com", port=8883)) is None
    assert alpn(DirectOptions(host="broker.example", port=443)) is None
    assert alpn(DirectOptions(host="broker.example", port=443, alpn="mqtt")) == "mqtt"
    assert make_context(DirectOptions(tls=True)).minimum_version is ssl.TLSVersion.TLSv1_2


def test_the_dates_of_certificates(certificates: Path) -> None:
    """Expired, not valid yet, 1970: told by our own clock before anything is sent."""
    cert = certificates / "client.crt"
    first, last = validity(cert.read_text())
    assert round(last - first) == 2 * 86400
    assert (first, last) == pytest.approx(
        tuple(ssl.cert_time_to_seconds(_line(cert, name)) for name in ("startdate", "enddate"))
    )
    options = DirectOptions(**files(certificates))
    make_context(options, now=first + 60)
    assert _failure(options, now=last + 60) == "certificate-expired"
    assert _failure(options, now=3600.0) == "clock"
    with pytest.raises(LinkFailure, match="the clock of this machine says 1970-01-01 01:00 UTC; set it"):
        make_context(options, now=3600.0)


def test_files_that_are_not_what_they_should_be(certificates: Path, tmp_path: Path) -> None:
    """Each is named; what stands in a key is never repeated."""
    garbage, cut, locked = tmp_path / "garbage", tmp_path / "cut", tmp_path / "locked"
    garbage.write_bytes(bytes(range(256)))
    text = (certificates / "client.crt").read_text()
    cut.write_text(text[:200] + "\n" + ssl.PEM_FOOTER)
    command = ["openssl", "ec", "-in", str(certificates / "client.key"), "-aes256", "-passout", "pass:x"]
    subprocess.run([*command, "-out", str(locked)], check=True, capture_output=True, timeout=30)
    assert _failure(DirectOptions(**files(certificates, ca=garbage))) == "certificate-invalid"
    assert _failure(DirectOptions(**files(certificates, cert=garbage))) == "certificate-invalid"
    assert _failure(DirectOptions(**files(certificates, cert=cut))) == "certificate-invalid"
    assert _failure(DirectOptions(**files(certificates, key=garbage))) == "key-invalid"
    assert _failure(DirectOptions(**files(certificates, key=locked))) == "key-encrypted"
    assert _failure(DirectOptions(**files(certificates, cert=None))) == "file-missing"
    broken = tmp_path / "broken.key"
    secret = (certificates / "client.key").read_text().replace("A", "!")
    broken.write_text(secret)
    with pytest.raises(LinkFailure) as caught:
        make_context(DirectOptions(**files(certificates, key=broken)))
    assert secret.splitlines()[1] not in str(caught.value)


async def test_a_clock_in_1970(tls_mosquitto: Mosquitto, certificates: Path, children: Children) -> None:
    """A machine without a battery for its clock: TLS fails, and the state says that the clock must be set."""
    if shutil.which("faketime") is None:
        pytest.skip("faketime is not installed: apt-get install faketime")
    code = (
        "import asyncio\n"
        "from pathlib import Path\n"
        "from support.mqtt_link import link\n"
        "async def main():\n"
        f"    options = dict(tls=True, ca=Path({str(certificates / 'ca.crt')!r}))\n"
        f"    async with link({tls_mosquitto.tls_port}, **options) as running:\n"
        "        state = await running.problem('clock')\n"
        "        print(state.reason, flush=True)\n"
        "asyncio.run(main())\n"
    )
    begin = ("faketime", "-f", "@1970-01-02 00:00:00")
    child = await children.run(*begin, sys.executable, "-c", code, environment={"FAKETIME_DONT_FAKE_MONOTONIC": "1"})
    line = await child.line("not valid yet")
    assert "the clock of this machine says 1970-01-0" in line
    assert "set it" in line
    assert await child.wait() == 0, child.report()


async def test_a_broken_context_is_only_an_attempt(certificates: Path, tmp_path: Path) -> None:
    """Files are read anew for each attempt: one that is repaired is found."""
    ca = tmp_path / "ca.crt"
    store = Store()
    async with link(1, store=store, **files(certificates, ca=ca)) as running:
        await running.problem("file-missing")
        ca.write_bytes((certificates / "ca.crt").read_bytes())
        await running.problem("refused")


def _failure(options: DirectOptions, *, now: float | None = None) -> str:
    with pytest.raises(LinkFailure) as caught:
        make_context(options, now=now)
    assert len(str(caught.value)) > 20
    return caught.value.failure.problem


def _line(cert: Path, name: str) -> str:
    command = ["openssl", "x509", "-in", str(cert), "-noout", f"-{name}"]
    return (
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip().partition("=")[2]
    )
