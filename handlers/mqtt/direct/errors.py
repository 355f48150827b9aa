"""What can be wrong with a link, as a stable word and a sentence that says what to do."""

from __future__ import annotations

import errno
import socket
import ssl
import time
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

TAKEN: Final = "client-id-taken"
MANY_SECONDS: Final = 30.0
"""The least pause before we come again when coming at once would do harm, in seconds."""


class Blame(IntEnum):
    """How much the end of a connection says about what we had sent just before it."""

    NONE = 0
    """Nothing: it was the broker's own end, the network's, or ours."""
    BROKEN = 1
    """It was reset: by anybody on the way, most likely."""
    CLOSED = 2
    """The far side closed it in order, without the word that MQTT 5 has for it: a proxy's drain, a takeover."""
    JUDGED = 3
    """It was closed without a word where there is none to say it with (MQTT 3.1.1), or with an unclear one."""
    FORBIDDEN = 4
    """The broker says it: not authorized."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no connection (any more)."""

    problem: str
    reason: str
    code: int | None = None
    pause: float = 0.0
    """Seconds to wait at least before the next attempt."""
    blame: Blame = Blame.NONE
    """Whether it may be for what we had just sent."""


class LinkFailure(Exception):
    """Carries a Failure to where the next attempt is planned."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


_OLD_CODES: Final = {1: 0x84, 2: 0x85, 3: 0x88, 4: 0x86, 5: 0x87}
"""CONNACK codes of MQTT 3.1.1 as those of MQTT 5."""

_LOGIN: Final = "check the user name and the password of the MQTT link"
_POLICY: Final = "check what the broker's policy (or access list) allows this client id, user and certificate"

_REFUSALS: Final[dict[int, tuple[str, str, float]]] = {
    0x84: ("version", "the broker does not speak this version of MQTT: set the other one (5 or 3.1.1)", 0.0),
    0x85: ("bad-client-id", "the broker does not accept the client id {client}: set one that it knows", 0.0),
    0x86: ("bad-credentials", f"the broker does not accept user name or password: {_LOGIN}", 0.0),
    0x87: ("not-authorized", f"the broker does not let client {{client}} in: {_POLICY}", 0.0),
    0x88: ("server-busy", "the broker is not available now: we come again later", 0.0),
    0x89: ("server-busy", "the broker is busy now: we come again later", 0.0),
    0x8A: ("banned", "the broker has banned client {client}: its operator must lift that", MANY_SECONDS),
    0x8C: ("bad-credentials", "the broker asks for another way to log in than user name, password or certificate", 0.0),
    0x97: ("server-busy", "the broker says that a quota is exceeded", MANY_SECONDS),
    0x9C: ("moved", "the broker says that another server must be used: set its address", MANY_SECONDS),
    0x9D: ("moved", "the broker has moved: set its new address", MANY_SECONDS),
    0x9F: ("server-busy", "the broker says that connections come too fast", MANY_SECONDS),
}

_GOODBYES: Final[dict[int, tuple[str, str, float, Blame]]] = {
    0x00: ("closed-by-broker", "the broker ended the connection in order", 0.0, Blame.NONE),
    0x87: ("not-authorized", f"the broker ended the connection: not authorized; {_POLICY}", 0.0, Blame.FORBIDDEN),
    0x8B: ("server-down", "the broker is shutting down: we come again later", 0.0, Blame.NONE),
    0x89: ("server-busy", "the broker is busy now: we come again later", 0.0, Blame.NONE),
    0x8D: ("timeout", "the broker had not heard of us for too long", 0.0, Blame.NONE),
    0x8E: (
        TAKEN,
        "another program connected with the client id {client} and took this one's place: give each its own client id",
        MANY_SECONDS,
        Blame.NONE,
    ),
    0x93: ("closed-by-broker", "the broker says that we sent more than it can hold", 0.0, Blame.NONE),
    0x96: (
        "too-fast",
        "the broker says that messages come too fast: lower the rate of the MQTT link",
        1.0,
        Blame.NONE,
    ),
    0x97: ("server-busy", "the broker says that a quota is exceeded", MANY_SECONDS, Blame.NONE),
    0x98: ("closed-by-broker", "the operator of the broker ended the connection", 1.0, Blame.NONE),
    0x9C: ("moved", "the broker says that another server must be used: set its address", MANY_SECONDS, Blame.NONE),
    0x9D: ("moved", "the broker has moved: set its new address", MANY_SECONDS, Blame.NONE),
    0x9F: ("server-busy", "the broker says that connections come too fast", MANY_SECONDS, Blame.NONE),
    0xA0: ("closed-by-broker", "the broker ends connections that have lasted for so long", 0.0, Blame.NONE),
}


def refused(code: int, client: str, *, five: bool, text: str = "") -> Failure:
    """The failure of a CONNACK with a reason code that is not 0."""
    known = code if five and code not in _OLD_CODES else _OLD_CODES.get(code, code)
    fallback = ("refused-by-broker", f"the broker refuses the connection with reason code {code:#04x}", 0.0)
    problem, reason, pause = _REFUSALS.get(known, fallback)
    return Failure(problem, _said(reason.format(client=repr(client)), text), code, pause)


def ended(code: int, client: str, text: str = "") -> Failure:
    """The failure of a DISCONNECT that the broker sent."""
    said = f"the broker ended the connection with reason code {code:#04x}"
    problem, reason, pause, blame = _GOODBYES.get(code, ("closed-by-broker", said, 0.0, Blame.JUDGED))
    return Failure(problem, _said(reason.format(client=repr(client)), text), code, pause, blame)


def _said(reason: str, text: str) -> str:
    return f"{reason} (it says: {text[:200]})" if text else reason


def broken(error: BaseException | None, where: str, *, tls: bool, greeted: bool, five: bool) -> Failure:
    """The failure of a connection that ended without a word. ``greeted``: the broker had let us in before.

    ``five``: MQTT 5 was spoken, in which a broker that judges says so.
    """
    if isinstance(error, ssl.SSLError):
        return from_error(error, where)
    gone = error is None or isinstance(error, ConnectionError)
    if not greeted and gone:
        return _shut_out(where, tls=tls)
    if gone:
        blame = Blame.BROKEN if error is not None else Blame.CLOSED if five else Blame.JUDGED
        return Failure("closed-by-broker", f"{where} closed the connection without giving a reason", blame=blame)
    return from_error(error, where)


def _shut_out(where: str, *, tls: bool) -> Failure:
    security = "with" if tls else "without"
    return Failure(
        "closed-by-broker",
        f"{where} closed the connection before it let us in: it may not want it {security} TLS on this port, or "
        "not this certificate, or its policy forbids this client id to connect",
    )


def thrown_out(failure: Failure, client: str, times: int) -> Failure:
    """What it means when the broker lets us in and ends the connection without a word, again and again.

    MQTT 3.1.1 cannot say that a client id is used twice, and Mosquitto does not say it in MQTT 5 either.
    """
    return Failure(
        TAKEN,
        f"{failure.reason}, {times} times in a row soon after it had let us in: it seems that another program uses the "
        f"client id {client!r}; give each its own (or something that we do is forbidden)",
        failure.code,
        MANY_SECONDS,
    )


def from_error(error: BaseException | None, where: str, *, tls: bool = False) -> Failure:
    """The failure of an attempt that ended with an exception of the network or of TLS (``tls``: it was to be used)."""
    if isinstance(error, LinkFailure):
        return error.failure
    if isinstance(error, ssl.SSLError):
        return _from_tls(error, where)
    if isinstance(error, TimeoutError):
        return Failure("timeout", f"{where} does not answer: is it the right address, and is there a way to it?")
    if isinstance(error, socket.gaierror):
        return Failure("host-unknown", f"the host of {where} is not known: check its name and the name server (DNS)")
    if isinstance(error, ConnectionResetError | BrokenPipeError | ConnectionAbortedError):
        return _shut_out(where, tls=tls)
    if isinstance(error, OSError):
        return _from_network(error, where)
    return Failure("internal", f"an unexpected error: {type(error).__name__}: {error}")


def _from_network(error: OSError, where: str) -> Failure:
    # asyncio tries all addresses of a host, and joins what they said into one error without a number
    if isinstance(error, ConnectionRefusedError) or f"[Errno {errno.ECONNREFUSED}]" in str(error):
        return Failure("refused", f"nobody listens at {where}: does the broker run, and is the port right?")
    if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL):
        return Failure("unreachable", f"there is no way to {where}: {error.strerror}; is the network up?")
    return Failure("lost", f"the connection to {where} failed: {error}")


_ALERTS: Final[dict[str, tuple[str, str]]] = {
    "CERTIFICATE_REQUIRED": ("tls-certificate-refused", "asks for a client certificate: set certificate and key"),
    "ALERT_UNKNOWN_CA": ("tls-certificate-refused", "does not know the authority of our certificate: register it"),
    "CERTIFICATE_EXPIRED": ("tls-certificate-refused", "says that our certificate has expired: get a new one"),
    "CERTIFICATE_REVOKED": ("tls-certificate-refused", "says that our certificate was revoked: get a new one"),
    "CERTIFICATE_UNKNOWN": ("tls-certificate-refused", "does not accept our certificate: is it registered and active?"),
    "BAD_CERTIFICATE": ("tls-certificate-refused", "does not accept our certificate: is it registered and active?"),
    "HANDSHAKE_FAILURE": ("tls-failed", "and we have no common TLS version, cipher or certificate"),
    "PROTOCOL_VERSION": ("tls-failed", "does not speak TLS 1.2 or newer"),
    "WRONG_VERSION_NUMBER": ("tls-failed", "does not speak TLS on this port: check the port, or switch TLS off"),
    "NO_APPLICATION_PROTOCOL": ("tls-failed", "does not speak MQTT on this port (ALPN): use 8883, or 443 on AWS IoT"),
}


def _from_tls(error: ssl.SSLError, where: str) -> Failure:
    if isinstance(error, ssl.SSLCertVerificationError):
        return _unverified(error, where)
    reason = error.reason or str(error)
    for word, (problem, text) in _ALERTS.items():
        if word in reason:
            return Failure(problem, f"{where} {text}")
    return Failure("tls-failed", f"TLS with {where} failed: {reason}")


_NOT_YET_VALID, _EXPIRED = 9, 10
_UNKNOWN_AUTHORITY: Final = (2, 18, 19, 20, 21)
_WRONG_NAME: Final = (62, 64)


def _unverified(error: ssl.SSLCertVerificationError, where: str) -> Failure:
    if error.verify_code == _NOT_YET_VALID:
        return Failure("clock", f"the certificate of {where} is not valid yet: {clock_sentence(time.time())}")
    if error.verify_code == _EXPIRED:
        text = f"the certificate of {where} has expired, or the clock is wrong: {clock_sentence(time.time())}"
        return Failure("tls-server-expired", text)
    if error.verify_code in _UNKNOWN_AUTHORITY:
        text = f"the certificate of {where} is of an unknown authority: set the right ca file"
        return Failure("tls-ca-unknown", text)
    if error.verify_code in _WRONG_NAME:
        return Failure("tls-wrong-host", f"the certificate of {where} is for another name: {error.verify_message}")
    return Failure("tls-failed", f"the certificate of {where} is not accepted: {error.verify_message}")


def clock_sentence(now: float) -> str:
    """What the clock says, and what to do if that is wrong. ``now`` in seconds since 1970."""
    stamp = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now))
    return f"the clock of this machine says {stamp}; set it if that is wrong"
