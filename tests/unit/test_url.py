"""Addresses of the server: each form is understood, and what is not gets an error that says so."""

from __future__ import annotations

import pytest

from petalbus.daemon.bus.hiding import shown_url
from petalbus.daemon.bus.url import parse


@pytest.mark.parametrize(
    ("url", "shown", "tls"),
    [
        ("unix:///run/bus.sock", "unix:///run/bus.sock", False),
        ("unix:///run/a%20bus.sock", "unix:///run/a bus.sock", False),
        ("redis://drone", "redis://drone:6379", False),
        ("redis://drone:7000/0", "redis://drone:7000", False),
        ("redis://me:secret@drone", "redis://drone:6379", False),
        ("rediss://drone:7000?verify=no", "rediss://drone:7000", True),
    ],
)
def test_addresses_are_understood(url: str, shown: str, tls: bool) -> None:
    address = parse(url)
    assert (address.shown, address.tls, address.verify) == (shown, tls, "verify=no" not in url)
    assert (address.username, address.password) == (("me", "secret") if "secret" in url else (None, None))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://me:secret@drone/3", "names database '3'"),
        ("redis://me:secret@drone?timeout=3", "unknown parameter 'timeout'"),
        ("redis://me:secret@drone:many", "many"),
        ("http://me:secret@drone", "is not understood"),
        ("unix://me:secret@", "no socket path"),
    ],
)
def test_what_is_no_address_is_told_without_its_password(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        parse(url)
    assert "secret" not in str(error.value)
    assert url.replace("me:secret@", "") in str(error.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:secret@host:8443/a/b?token=secret#secret", "https://host:8443/a/b"),
        ("http://[::1]:80/a", "http://[::1]:80/a"),
        ("/path?token=secret", "/path"),
        ("http://host:many/secret", "(no URL)"),
    ],
)
def test_urls_are_shown_without_their_secrets(url: str, shown: str) -> None:
    assert shown_url(url) == shown
