"""LocalDBProxy: the file. Damage, full disks, crashes, migrations, backups, several processes."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from petalbus.petals.proxies.errors import ProxyNotReady
from petalbus.petals.proxies.localdb import (
    ALL,
    DatabaseDamaged,
    DatabaseError,
    DiskFull,
    LocalDBProxy,
    MigrationRefused,
    QueryFailed,
    QueryRefused,
    opening,
)

from .localdb_made import local_db
from support.procs import Children

NOTES = "CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL)"
STEPS = [
    "CREATE TABLE trips (id INTEGER PRIMARY KEY); CREATE TABLE legs (trip INTEGER);",
    "INSERT INTO trips VALUES (1)",
]

WRITER = """
import asyncio, sys
from petalbus.petals.proxies.localdb import LocalDBProxy

async def main():
    db = LocalDBProxy(file=sys.argv[1], machine_id="M1")
    await db.start()
    await db.execute_query("CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL)")
    print("ready", flush=True)
    while True:
        async with db.transaction() as tx:
            one = await tx.insert("notes", {"text": "a"})
            two = await tx.insert("notes", {"text": "b" * 200})
        print("wrote", one, two, flush=True)

asyncio.run(main())
"""
HOLDER = """
import asyncio, sys
from petalbus.petals.proxies.localdb import LocalDBProxy

async def main():
    db = LocalDBProxy(file=sys.argv[1], machine_id="M1")
    await db.start()
    print("ready" if db.is_ready else db.reason, flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await db.stop()

asyncio.run(main())
"""


async def filled(directory: Path, rows: int = 2000) -> None:
    async with local_db(directory) as db:
        await db.execute_query(NOTES)
        for at in range(0, rows, 200):
            async with db.transaction() as tx:
                for n in range(at, at + 200):
                    await tx.insert("notes", {"text": f"{n} {'x' * 100}"})


def overwrite(file: Path, at: int, content: bytes) -> None:
    """From outside: closing the file in this process would end SQLite's locks."""
    code = (
        "import sys; f = open(sys.argv[1], 'r+b'); f.seek(int(sys.argv[2])); "
        "f.write(bytes.fromhex(sys.argv[3])); f.close()"
    )
    subprocess.run([sys.executable, "-c", code, file, str(at), content.hex()], check=True, timeout=20)


def damage(file: Path, how: str) -> None:
    size = file.stat().st_size
    if how == "no database":
        file.write_bytes(b"this is a text, and not a short one. " * 100)
    elif how == "garbage in the middle":
        overwrite(file, size // 2 // 4096 * 4096, os.urandom(16384))
    elif how == "cut":
        os.truncate(file, size // 3)
    elif how == "header":
        overwrite(file, 16, b"\xff" * 84)


@pytest.mark.parametrize("how", ["no database", "garbage in the middle", "cut", "header"])
async def test_a_damaged_file_is_set_aside_and_reported(tmp_path: Path, how: str) -> None:
    """S-062: it starts with a new file, keeps the damaged one as it was found, and says so."""
    await filled(tmp_path)
    file = tmp_path / "local.db"
    damage(file, how)
    found = file.read_bytes()
    async with local_db(tmp_path) as db:
        assert db.is_ready
        await db.execute_query(NOTES)
        assert await db.insert("notes", {"text": "new"}) == 1
        health = await db.health_check()
        assert [Path(kept).read_bytes() == found for kept in health["set_aside"]] == [True]
    async with local_db(tmp_path) as again:  # and is not damaged again
        assert await again.fetch_all("SELECT text FROM notes") == [{"text": "new"}]
        assert (await again.health_check())["set_aside"] == health["set_aside"]


async def test_damage_that_shows_later_is_met_the_same_way(tmp_path: Path) -> None:
    """S-062: the call that meets it fails with a clear error; a moment later there is a new file."""
    await filled(tmp_path)
    async with local_db(tmp_path) as db:
        damage(tmp_path / "local.db", "garbage in the middle")
        with pytest.raises(DatabaseDamaged, match="set aside"):
            await db.fetch_all("SELECT * FROM notes")
        assert await db.wait_until_ready(5)
        await db.execute_query(NOTES)
        assert await db.fetch_all("SELECT * FROM notes") == []
        assert len((await db.health_check())["set_aside"]) == 1


async def test_a_damaged_file_is_not_taken_from_another_process(tmp_path: Path, children: Children) -> None:
    """It is not ready, and says who must stop first; when that has stopped it becomes ready by itself."""
    await filled(tmp_path)
    file = tmp_path / "local.db"
    holder = await children.code(HOLDER, str(file))
    await holder.line("ready")
    damage(file, "header")
    async with local_db(tmp_path) as db:
        assert not db.is_ready
        assert "another process has it open" in db.reason
        with pytest.raises(ProxyNotReady, match="another process"):
            await db.fetch_all("SELECT 1")
        holder.kill()
        assert await db.wait_until_ready(10), db.reason
        assert len((await db.health_check())["set_aside"]) == 1


async def test_only_so_many_damaged_files_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest goes: it held the least."""
    monkeypatch.setattr(opening, "KEPT_ASIDE", 2)
    for size in (3000, 1000, 2000):
        (tmp_path / "local.db").write_bytes(b"x" * size)
        async with local_db(tmp_path) as db:
            kept = (await db.health_check())["set_aside"]
    assert sorted(Path(one).stat().st_size for one in kept) == [2000, 3000]


async def test_a_start_that_is_cancelled_gives_everything_back(tmp_path: Path) -> None:
    """At any point of it; the next start works, also where nobody else may hold the file."""
    for n in range(12):
        db = LocalDBProxy(file=tmp_path / "local.db", machine_id="M1")
        starting = asyncio.create_task(db.start())
        for _ in range(n):
            await asyncio.sleep(0.001)
        starting.cancel()
        await asyncio.wait([starting])
        await db.stop()
    (tmp_path / "local.db").write_bytes(b"x" * 5000)
    async with asyncio.timeout(5):
        while True:
            async with local_db(tmp_path) as db:
                if db.is_ready:
                    break
            await asyncio.sleep(0.01)
    assert len(list(tmp_path.glob("local.db.damaged-*"))) == 1


async def test_a_place_that_cannot_be_used_is_told_and_tried_again(tmp_path: Path) -> None:
    """Start does not fail; calls tell why; whoever waits gets it as soon as the place is usable."""
    (tmp_path / "in").write_text("a file where the directory should be")
    async with local_db(tmp_path, file=tmp_path / "in" / "local.db") as db:
        assert not db.is_ready
        assert "in" in db.reason
        with pytest.raises(ProxyNotReady):
            await db.insert("notes", {"text": "a"})
        assert (await db.get_item("t", "id", "1"))["status"] == 503
        health = await db.health_check()
        assert (health["status"], health["file_bytes"]) == ("unhealthy", 0)
        waiting = asyncio.create_task(db.wait_until_ready(10))
        (tmp_path / "in").unlink()
        assert await waiting
        assert (await db.health_check())["status"] == "healthy"


async def test_a_full_disk_is_told_and_loses_nothing(tmp_path: Path) -> None:
    """S-062: what does not fit is refused as a whole; reading goes on; with room again, writing does."""
    async with local_db(tmp_path, max_bytes=40 * 4096) as db:
        await db.execute_query(NOTES)
        kept = 0
        with pytest.raises(DiskFull, match="free some space"):
            while True:
                await db.insert("notes", {"text": "x" * 4000})
                kept += 1
        assert kept > 5
        with pytest.raises(DatabaseError):
            async with db.transaction() as tx:
                for _ in range(10):
                    await tx.insert("notes", {"text": "x" * 4000})
        answer = await db.set_item("t", "id", "1", {"text": "x" * 8000})
        assert (answer["status"], answer["error_code"]) == (507, "disk_full")
        assert await db.fetch_one("SELECT COUNT(*) AS n FROM notes") == {"n": kept}
        await db.delete("notes", {"id": 1})
        await db.delete("notes", {"id": 2})
        assert await db.insert("notes", {"text": "fits"}) == kept + 1


async def test_what_was_written_outlives_a_kill(tmp_path: Path, children: Children) -> None:
    """S-062: kill -9 in the middle of writing loses nothing that had returned, and leaves no half transaction."""
    file = tmp_path / "local.db"
    child = await children.code(WRITER, str(file))
    await child.line("wrote 39 40")
    child.kill()
    await child.wait()
    last = max(int(line.split()[2]) for line in child.output if line.startswith("wrote"))
    async with local_db(tmp_path) as db:
        counted = await db.fetch_one("SELECT COUNT(*) AS n, MAX(id) AS last, SUM(text = 'a') * 2 AS pairs FROM notes")
        assert counted is not None
        assert counted["last"] >= last
        assert counted["n"] == counted["last"] == counted["pairs"]
        assert (await db.health_check())["set_aside"] == []


async def test_a_write_reaches_the_disk_within_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S-062: a power cut loses about the last second, not everything since the last checkpoint."""
    synced = asyncio.Event()
    loop = asyncio.get_running_loop()
    real = os.fdatasync

    def fdatasync(descriptor: int) -> None:
        assert Path(f"/proc/self/fd/{descriptor}").readlink().name == "local.db-wal"
        real(descriptor)
        loop.call_soon_threadsafe(synced.set)

    async with local_db(tmp_path) as db:
        await db.execute_query(NOTES)
        monkeypatch.setattr(os, "fdatasync", fdatasync)
        await asyncio.wait_for(synced.wait(), 1.5)
        synced.clear()
        await db.insert("notes", {"text": "a"})
        await asyncio.wait_for(synced.wait(), 1.5)


async def test_two_processes_use_one_file(tmp_path: Path, children: Children) -> None:
    """Both write; each sees the other's rows."""
    child = await children.code(WRITER, str(tmp_path / "local.db"))
    await child.line("wrote")
    async with local_db(tmp_path) as db:
        for _ in range(50):
            await db.insert("notes", {"text": "mine"})
        await child.line("wrote")
        counts = await db.fetch_all("SELECT text = 'mine' AS mine, COUNT(*) AS n FROM notes GROUP BY 1 ORDER BY 1")
    assert counts[1] == {"mine": 1, "n": 50}
    assert counts[0]["n"] >= 4


async def test_migrations_are_applied_once_and_in_order(tmp_path: Path) -> None:
    """S-062: each step once, in this run or a later one; new steps follow."""
    async with local_db(tmp_path) as db:
        assert await db.migrate("trips", STEPS[:1]) == 1
        assert await db.migrate("trips", STEPS) == 1
        assert await db.migrate("other", ["CREATE TABLE others (id)"]) == 1
    async with local_db(tmp_path) as db:
        indented = [f"\n    {step}\n" for step in STEPS]
        assert await db.migrate("trips", indented) == 0
        assert await db.fetch_all("SELECT id FROM trips") == [{"id": 1}]


async def test_a_changed_or_missing_step_is_refused(tmp_path: Path) -> None:
    """S-062: nothing is applied then."""
    async with local_db(tmp_path) as db:
        await db.migrate("trips", STEPS)
        with pytest.raises(MigrationRefused, match="step 2 of the migrations 'trips' was changed"):
            await db.migrate("trips", [STEPS[0], "INSERT INTO trips VALUES (2)", "INSERT INTO trips VALUES (3)"])
        with pytest.raises(MigrationRefused, match="a newer version has used it"):
            await db.migrate("trips", STEPS[:1])
        assert await db.fetch_all("SELECT id FROM trips") == [{"id": 1}]


async def test_a_step_that_fails_is_undone(tmp_path: Path) -> None:
    """S-062: all of its statements; the steps before it stay, and it is tried again the next time."""
    broken = "INSERT INTO trips VALUES (2); INSERT INTO nowhere VALUES (1)"
    async with local_db(tmp_path) as db:
        with pytest.raises(QueryFailed, match=r"step 3 .* no such table: nowhere; in: INSERT INTO nowhere"):
            await db.migrate("trips", [*STEPS, broken])
        assert await db.fetch_all("SELECT id FROM trips") == [{"id": 1}]
        assert await db.migrate("trips", [*STEPS, "INSERT INTO trips VALUES (2)"]) == 1


@pytest.mark.parametrize(
    "steps", ["CREATE TABLE a (b)", [""], [7], ["BEGIN"], ["DROP TABLE petalbus_items"], ["PRAGMA foreign_keys = OFF"]]
)
async def test_what_is_no_migration_is_refused(tmp_path: Path, steps: Any) -> None:
    async with local_db(tmp_path) as db:
        with pytest.raises(QueryRefused):
            await db.migrate("trips", steps)
        with pytest.raises(QueryRefused):
            await db.migrate("no name!", STEPS)
        assert await db.migrate("trips", STEPS) == 2  # the guard is as it was


async def test_a_step_may_hold_triggers_and_comments(tmp_path: Path) -> None:
    step = """
        CREATE TABLE a (b); -- one; two
        CREATE TRIGGER t AFTER INSERT ON a BEGIN
            UPDATE a SET b = 'x;y' WHERE b IS NULL;
            DELETE FROM a WHERE b = 'gone';
        END;
        INSERT INTO a VALUES (NULL) /* the last; without an end */
    """
    async with local_db(tmp_path) as db:
        await db.migrate("a", [step])
        assert await db.fetch_all("SELECT b FROM a") == [{"b": "x;y"}]


async def test_two_that_migrate_at_the_same_time_apply_each_step_once(tmp_path: Path) -> None:
    async with local_db(tmp_path) as one, local_db(tmp_path) as two:
        applied = await asyncio.gather(one.migrate("trips", STEPS), two.migrate("trips", STEPS))
        assert sum(applied) == len(STEPS)
        assert await two.fetch_all("SELECT id FROM trips") == [{"id": 1}]


async def test_a_backup_is_whole_although_others_write(tmp_path: Path) -> None:
    """S-062: of each transaction all or nothing is in it; it is one file, and opens as a database."""
    copy = tmp_path / "backups" / "copy.db"
    async with local_db(tmp_path) as db:
        await db.execute_query(NOTES)
        async with db.transaction() as tx:
            for _ in range(1000):  # more than is copied in one piece
                await tx.insert("notes", {"text": "one"})
                await tx.insert("notes", {"text": "x" * 6000})

        async def write() -> None:
            while True:
                async with db.transaction() as tx:
                    await tx.insert("notes", {"text": "one"})
                    await tx.insert("notes", {"text": "x" * 6000})

        writing = asyncio.create_task(write())
        for _ in range(5):
            before = await db.fetch_one("SELECT COUNT(*) AS n FROM notes")
            assert before is not None
            size = await asyncio.wait_for(db.backup(copy), 10)
            assert size == copy.stat().st_size
            with sqlite3.connect(copy) as plain:
                (count, ones) = plain.execute("SELECT COUNT(*), SUM(text = 'one') FROM notes").fetchone()
                (answer,) = plain.execute("PRAGMA integrity_check").fetchone()
            plain.close()
            assert answer == "ok"
            assert count >= before["n"]
            assert count == 2 * (ones or 0)
        writing.cancel()
        await asyncio.wait([writing])
    assert [one.name for one in copy.parent.iterdir()] == ["copy.db"]
    restored = tmp_path / "restored"
    restored.mkdir()
    shutil.copy(copy, restored / "local.db")
    async with local_db(restored) as db:
        assert await db.fetch_one("SELECT COUNT(*) AS n FROM notes") == {"n": count}


async def test_a_backup_that_cannot_be_made_leaves_the_old_one(tmp_path: Path) -> None:
    async with local_db(tmp_path) as db:
        await db.execute_query(NOTES)
        copy = tmp_path / "copy.db"
        await db.backup(copy)
        old = copy.read_bytes()
        with pytest.raises(QueryRefused, match="the database itself"):
            await db.backup(tmp_path / "local.db")
        with pytest.raises(OSError, match=r"copy\.db"):
            await db.backup(tmp_path / "copy.db" / "inside.db")
        running = asyncio.create_task(db.backup(copy))
        await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait([running])
        async with asyncio.timeout(5):
            while list(tmp_path.glob(".copy.db.*")):
                await asyncio.sleep(0.01)
        assert await db.fetch_one("SELECT COUNT(*) AS n FROM notes") == {"n": 0}
    assert copy.read_bytes()[:16] == old[:16]


async def test_vacuum_gives_room_back(tmp_path: Path) -> None:
    await filled(tmp_path)
    async with local_db(tmp_path) as db:
        before = (tmp_path / "local.db").stat().st_size
        await db.delete("notes", ALL)
        after = await db.vacuum()
        assert after == (tmp_path / "local.db").stat().st_size
        assert after < before / 2


async def test_health_measures_the_file(tmp_path: Path) -> None:
    """Sizes, the queue, integrity, and how long a tiny write takes; also when asked inside of a transaction."""
    async with local_db(tmp_path) as db:
        await db.sync_append("k", "set", {})
        async with db.transaction():
            health = await db.health_check()
        assert (health["status"], health["proxy"], health["backend"]) == ("healthy", "local database", "sqlite")
        assert health["file_bytes"] > 0
        assert health["wal_bytes"] > 0
        assert health["free_bytes"] > 0
        assert 0 < health["write_ms"] < 5000
        assert health["queue"]["changes"] == 1
        assert (health["integrity"], health["machine_id"]) == ("new", "M1")
        (tmp_path / "local.db").unlink()
        health = await db.health_check()
        assert health["status"] == "unhealthy"
        assert "taken away" in health["message"]


async def test_the_default_file_is_in_the_data_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S-009: made without any argument it works."""
    monkeypatch.setenv("PETALBUS_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("PETAL_MACHINE_ID", raising=False)
    db = LocalDBProxy()
    await db.start()
    try:
        assert db.is_ready
        assert db.file == tmp_path / "data" / "local.db"
        assert db.machine_id == db._get_machine_id() == (tmp_path / "data" / "machine-id").read_text().strip()
    finally:
        await db.stop()
