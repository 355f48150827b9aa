"""The TLS context of the link: authority, client certificate and key, ALPN; what is wrong with the files, in words.

Nothing here ever repeats what stands in a key file.
"""

from __future__ import annotations

import ssl
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from petalbus.handlers.mqtt.direct.errors import Failure, LinkFailure, clock_sentence
from petalbus.handlers.mqtt.options import DirectOptions

AWS_ALPN: Final = "x-amzn-mqtt-ca"
_AWS_HOSTS: Final = (".amazonaws.com", ".amazonaws.com.cn")
_HTTPS_PORT: Final = 443


def make_context(options: DirectOptions, *, now: float | None = None) -> ssl.SSLContext:
    """Read the files and make the context. It blocks: call it in a thread. ``now``: the clock, seconds since 1970.

    Raises LinkFailure that names the file and says what is wrong with it.
    """
    # with an authority given, no other one is trusted
    context = ssl.create_default_context() if options.ca is None else _trusting(options.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if options.cert is not None:
        _load_own(context, options.cert, options.key, time.time() if now is None else now)
    elif options.key is not None:
        raise LinkFailure(Failure("file-missing", f"there is a key ({options.key}) but no certificate: set both"))
    protocol = alpn(options)
    if protocol is not None:
        context.set_alpn_protocols([protocol])
    return context


def alpn(options: DirectOptions) -> str | None:
    """The application protocol to ask for: the one that is set, or AWS IoT's on its port 443."""
    if options.alpn is None and options.port == _HTTPS_PORT and options.host.lower().endswith(_AWS_HOSTS):
        return AWS_ALPN
    return options.alpn


def validity(pem: str) -> tuple[float, float]:
    """From when until when the first certificate in a PEM text is valid, in seconds since 1970.

    Raises ValueError when there is none.
    """
    begin = pem.find(ssl.PEM_HEADER)
    end = pem.find(ssl.PEM_FOOTER)
    if begin < 0 or end < begin:
        raise ValueError("there is no certificate in it")
    der = ssl.PEM_cert_to_DER_cert(pem[begin : end + len(ssl.PEM_FOOTER)])
    _, body, _ = _element(der)  # Certificate
    _, body, _ = _element(body)  # what is signed
    kind, _, rest = _element(body)
    if kind == 0xA0:  # the version, which may be left out
        _, _, rest = _element(rest)  # serial number
    for _ in ("signature algorithm", "issuer"):
        _, _, rest = _element(rest)
    _, period, _ = _element(rest)
    kind, first, rest = _element(period)
    last_kind, last, _ = _element(rest)
    return _moment(kind, first), _moment(last_kind, last)


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """The first element of a DER text: its kind, what is in it, and what follows."""
    if len(data) < 2:
        raise ValueError("the certificate is cut off")
    length, start = data[1], 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(data[2:start], "big")
    if len(data) < start + length:
        raise ValueError("the certificate is cut off")
    return data[0], data[start : start + length], data[start + length :]


def _moment(kind: int, text: bytes) -> float:
    digits = text.decode("ascii").removesuffix("Z")
    if kind == 0x17:  # two digits for the year, from 1950 on
        digits = ("19" if digits >= "50" else "20") + digits
    return datetime.strptime(digits, "%Y%m%d%H%M%S").replace(tzinfo=UTC).timestamp()


def _trusting(path: Path) -> ssl.SSLContext:
    text = _read(path, "ca file")
    try:
        return ssl.create_default_context(cadata=text)
    except (ssl.SSLError, ValueError) as error:
        problem = Failure("certificate-invalid", f"the ca file {path} cannot be read: there is no certificate in it")
        raise LinkFailure(problem) from error


def _load_own(context: ssl.SSLContext, cert: Path, key: Path | None, now: float) -> None:
    text = _read(cert, "certificate")
    secret = text if key is None else _read(key, "key")
    try:
        first, last = validity(text)
    except ValueError as error:
        problem = Failure("certificate-invalid", f"the certificate {cert} cannot be read: {error}")
        raise LinkFailure(problem) from error
    if now < first:
        raise LinkFailure(Failure("clock", f"the certificate {cert} is not valid yet: {clock_sentence(now)}"))
    if now > last:
        until = datetime.fromtimestamp(last, UTC).date()
        text = f"the certificate {cert} was valid until {until}: get a new one; {clock_sentence(now)}"
        raise LinkFailure(Failure("certificate-expired", text))
    where = f"{key or cert}"
    if "ENCRYPTED" in secret:
        raise LinkFailure(Failure("key-encrypted", f"the key {where} has a passphrase: store it without one"))
    if "PRIVATE KEY-----" not in secret:
        raise LinkFailure(Failure("key-invalid", f"there is no private key in {where}"))
    try:
        context.load_cert_chain(cert, key)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH" or "MISMATCH" in (error.reason or ""):
            raise LinkFailure(Failure("key-mismatch", f"the key {where} does not belong to {cert}")) from None
        problem = Failure("key-invalid", f"certificate {cert} or key {where} cannot be used: {error.reason}")
        raise LinkFailure(problem) from None


def _read(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="ascii", errors="ignore")  # of the ca files some have names in their comments
    except FileNotFoundError:
        failure = Failure("file-missing", f"the {what} {path} does not exist: set the right path")
    except OSError as error:
        failure = Failure("file-unreadable", f"the {what} {path} cannot be read: {error.strerror}")
    raise LinkFailure(failure)
