"""Session credentials in a file: uploads go on after a restart while the token service is away."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from petalbus.daemon.bus.errors import ReplyError
from petalbus.handlers.bucket import credentials as credentials_module
from petalbus.handlers.bucket import kept as kept_module
from petalbus.handlers.bucket import upload as upload_module
from petalbus.handlers.bucket.credentials import Credentials, fetch
from petalbus.handlers.bucket.errors import Away, NoTokens, Refusal
from petalbus.handlers.bucket.kept import KeptCredentials, delete_kept

from .conftest import MACHINE, World
from .wire import answer
from support.s3_world import KEYS

FETCHED = {"access_key": "a", "secret_key": "b", "token": "c"}


def later(**time: float) -> str:
    """So long from now."""
    return (datetime.now(UTC) + timedelta(**time)).isoformat()


class Vault:
    """A world whose handler keeps its credentials, and what is in their file."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.path = world.folder / "bucket" / "credentials.json"
        world.tokens.answer["expiration"] = later(hours=1)

    def kept(self, *, url: str | None = None, machine: str | None = MACHINE) -> KeptCredentials:
        """The file, as the daemon has it."""
        return KeptCredentials(self.path, lambda: (url or self.world.tokens.url, "logs", machine))

    async def start(self, **bound: Any) -> None:
        """A handler with it."""
        await self.world.start(store=self.world.store(kept=self.kept(**bound)))

    async def upload(self, name: str = "flight.ulg") -> dict[str, Any]:
        """Store a log; the result."""
        path = self.world.log(name=name)
        return await self.world.result(await self.world.send(path), path)

    async def away(self) -> None:
        """See ``service_away``."""
        await service_away(self.world)


async def test_the_services_address_keeps_its_secrets(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """S-069: neither the log nor an error shows a password or a query that stands in the URL."""
    secret = world.tokens.url.replace("//", "//user:pass-word@") + "?key=hidden"
    with caplog.at_level(logging.INFO):
        with pytest.raises(NoTokens):
            world.tokens.status = 500
            await fetch(secret, timeout=5)
        await service_away(world)
        with pytest.raises(Away) as caught:
            await fetch(secret, timeout=5)
    assert "HTTP Request" in caplog.text
    assert not any(word in caplog.text + str(caught.value) for word in ("pass-word", "hidden"))


async def service_away(world: World) -> None:
    """The token service is gone; nobody listens there."""
    await world.tokens.__aexit__()


@pytest.fixture
def vault(world: World) -> Vault:
    return Vault(world)


@pytest.fixture
def no_mask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


async def test_a_start_without_the_token_service(vault: Vault, no_mask: None, caplog: pytest.LogCaptureFixture) -> None:
    """S-246, S-250: what an earlier run has fetched is used until it ends, from a file that only we may read."""
    caplog.set_level(logging.DEBUG)
    world = vault.world
    await vault.start()
    assert not vault.path.exists()  # nothing is asked for before it is needed
    await vault.upload()
    assert stat.S_IMODE(vault.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(vault.path.parent.stat().st_mode) == 0o700
    await world.stop()
    await vault.start()
    await vault.upload("b.ulg")
    assert world.tokens.asked == 1  # the service is there, and need not be asked
    await world.stop()
    await vault.away()
    await vault.start()
    told = await vault.upload("c.ulg")
    assert world.stored(told["s3_key"]) == (world.folder / "c.ulg").read_bytes()
    secrets = [*KEYS[1:], "sessionToken", "secretAccessKey"]
    entries = str(await world.bus.ask("XRANGE", world.bus.keys.replies("gcs"), "-", "+"))
    assert not any(one in caplog.text + entries for one in secrets)
    assert world.tokens.url not in vault.path.read_text()
    assert [one.name for one in vault.path.parent.iterdir()] == ["credentials.json"]


async def test_short_ones_serve_only_while_the_service_is_away(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """S-250: with less than two minutes left the service is asked; where it fails, they are used to their end."""
    monkeypatch.setattr(credentials_module, "REMEMBERED_SECONDS", 0.0)
    world = vault.world
    await vault.start()
    await vault.upload()
    await world.stop()
    await vault.kept().save({**FETCHED, "access_key": KEYS[0], "secret_key": KEYS[1], "expiry_time": later(seconds=90)})
    world.tokens.status = 500
    await vault.start()
    assert (await vault.upload("b.ulg"))["success"]
    assert world.tokens.asked >= 2
    world.tokens.status = 200
    assert (await vault.upload("c.ulg"))["success"]
    assert json.loads(vault.path.read_text())["expiry_time"] > later(minutes=30)


async def test_a_service_that_fails_is_not_asked_by_everyone(world: World) -> None:
    """S-249, S-271: many uploads wait for it; each is told the same, and one asks."""
    world.tokens.status = 401
    credentials = Credentials(world.tokens.url, timeout=5)
    told = await asyncio.gather(*(credentials.current() for _ in range(50)), return_exceptions=True)
    assert {(type(one), str(one)) for one in told} == {
        (Refusal, "Authentication failed: the session token service answered 401")
    }
    assert world.tokens.asked == 1


@pytest.mark.parametrize("told", [None, "some day"])
async def test_those_without_an_end_are_not_kept(vault: Vault, told: str | None) -> None:
    """Nobody could say when they are to be deleted."""
    vault.world.tokens.answer["expiration"] = told
    await vault.start()
    await vault.upload()
    assert list(vault.path.parent.glob("*")) == []


@pytest.mark.parametrize("bound", [{"url": "http://127.0.0.1:9/other"}, {"machine": "m2"}, {"machine": None}])
async def test_those_of_somebody_else_are_not_used(vault: Vault, bound: dict[str, Any]) -> None:
    """S-246: another service, another machine, and one that does not know itself yet."""
    await vault.kept().save({**FETCHED, "expiry_time": later(hours=1)})
    assert await vault.kept(**bound).load() is None
    assert await vault.kept().load() is not None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_text("[]"),
        lambda path: path.write_bytes(b"\xff" * 100_000),
        lambda path: path.chmod(0o640),
        lambda path: path.rename(path.with_name("x")) and path.symlink_to(path.with_name("x")),
    ],
)
async def test_a_file_that_is_not_as_we_made_it_goes(vault: Vault, spoil: Callable[[Path], Any]) -> None:
    """Cut off, of something else, too large, readable for others, a link: it is not used, and deleted."""
    await vault.kept().save({**FETCHED, "expiry_time": later(hours=1)})
    spoil(vault.path)
    assert await vault.kept().load() is None
    assert not vault.path.is_symlink()
    assert not vault.path.exists()


async def test_one_changed_letter_is_seen(vault: Vault) -> None:
    """A failing disk makes no wrong secret."""
    await vault.kept().save({**FETCHED, "expiry_time": later(hours=1)})
    vault.path.write_text(vault.path.read_text().replace('"secret_key": "b"', '"secret_key": "B"'))
    assert await vault.kept().load() is None


async def test_a_clock_that_was_set_back(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the time of their fetching nothing is known of their end; once the clock is right they are good again."""

    class Clock(datetime):
        ahead = timedelta(0)

        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]  # a plain one is enough
            return datetime.now(tz) + cls.ahead

    monkeypatch.setattr(kept_module, "datetime", Clock)
    await vault.kept().save({**FETCHED, "expiry_time": later(hours=1)})
    Clock.ahead = timedelta(days=-400)
    assert await vault.kept().load() is None
    Clock.ahead = timedelta(minutes=5)
    assert await vault.kept().load() == {**FETCHED, "expiry_time": json.loads(vault.path.read_text())["expiry_time"]}
    Clock.ahead = timedelta(hours=2)
    assert await vault.kept().load() is None
    assert not vault.path.exists()


async def test_what_has_ended_is_deleted_by_itself(vault: Vault) -> None:
    """Also while nothing is uploaded; and what a killed process has left half written. A link is not followed."""
    kept = vault.kept()
    await kept.save({**FETCHED, "expiry_time": later(seconds=-1)})
    other = vault.world.folder / "other"
    other.write_text("somebody's")
    vault.path.with_name("credentials.json.part").symlink_to(other)
    await kept.save({**FETCHED, "expiry_time": later(seconds=-1)})
    assert (other.read_text(), vault.path.is_file()) == ("somebody's", True)
    vault.path.with_name("credentials.json.part").write_text("half")
    await vault.start()
    async with asyncio.timeout(20):
        while list(vault.path.parent.iterdir()):
            await asyncio.sleep(0.02)
    await kept.save({**FETCHED, "expiry_time": later(hours=1)})
    delete_kept(vault.path)
    assert list(vault.path.parent.iterdir()) == []


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidAccessKeyId"])
async def test_those_that_the_store_refuses_are_deleted(vault: Vault, code: str) -> None:
    """S-246, S-271: new ones are fetched where they can be; without the service the log waits and is not given up."""
    world = vault.world
    await vault.kept().save({**FETCHED, "expiry_time": later(hours=1)})
    rule = world.wire.rule("PUT", "", answer(403, code), times=1)
    await vault.start()
    assert (await vault.upload())["success"]
    assert (rule.hits, world.tokens.asked) == (1, 1)
    await world.stop()
    await vault.away()
    rule = world.wire.rule("PUT", "", answer(403, code), times=99)
    await vault.start()
    upload = await world.send(world.log(name="b.ulg"))
    seen = await world.until(upload, lambda one: one["state"] == "offline" and one["last_error"])
    assert "token service" in seen["last_error"]
    assert not vault.path.exists()


async def test_nothing_is_left_where_fresh_ones_are_refused_or_the_service_says_no(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S-271: a dead letter in the end, as without a file."""
    monkeypatch.setattr(upload_module, "REFUSED_S", 0.1)
    world = vault.world
    world.wire.rule("PUT", "", answer(403, "InvalidAccessKeyId"), times=2)
    await vault.start()
    with pytest.raises(ReplyError, match="InvalidAccessKeyId"):
        await vault.upload()
    assert not vault.path.exists()
    await world.stop()
    await vault.kept().save({**FETCHED, "expiry_time": later(seconds=60)})
    world.tokens.status = 403
    await vault.start()
    with pytest.raises(ReplyError, match="Authentication failed"):
        await vault.upload("b.ulg")
    assert not vault.path.exists()


async def test_a_disk_that_takes_nothing_costs_only_the_file(vault: Vault) -> None:
    """S-245: the upload goes on."""
    (vault.world.folder / "bucket").write_text("in the way")
    await vault.start()
    assert (await vault.upload())["success"]
