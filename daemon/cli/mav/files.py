"""`petalbus mav ftp`, `log`, `shell` and `record`: files, flight logs, PX4's shell, and frames into a .tlog."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from petalbus.daemon.cli.common import Data, Json, client, run, say, say_json, table
from petalbus.daemon.cli.exits import BadUsage, Refused
from petalbus.daemon.cli.mav.asking import Bar, System, ask

ftp = typer.Typer(no_args_is_help=True, help="Files on the vehicle, by MAVLink FTP.")
log = typer.Typer(no_args_is_help=True, help="Flight logs on the vehicle.")

_SECONDS: Final = 20.0
_TRANSFER_S: Final = 3600.0

Remote = Annotated[str, typer.Argument(metavar="PATH", help="A path on the vehicle, such as /fs/microsd.")]
Local = Annotated[
    Path | None,
    typer.Argument(metavar="[FILE]", help="Where to; the current folder when not given.", show_default=False),
]


@ftp.command("ls")
def ls(path: Remote = "/", system: System = None, data: Data = None, json: Json = False) -> None:
    """List a folder."""
    entries = run(ask(data, "mavlink.ftp.list", {"path": path}, timeout=_SECONDS, system=system))["entries"]
    if json:
        for name, size in entries:
            say_json({"name": name, "size": size})
    else:
        rows = [(name + ("/" if size is None else ""), "" if size is None else size) for name, size in entries]
        table(("NAME", ">BYTES"), rows, empty="the folder is empty")


@ftp.command("get")
def get(path: Remote, file: Local = None, system: System = None, data: Data = None) -> None:
    """Fetch a file. A transfer that broke off goes on where it was."""
    with Bar(path, unit="B") as show:
        told = run(ask(data, "mavlink.ftp.get", {"path": path}, timeout=_TRANSFER_S, on_progress=show, system=system))
    _bring(told["file"], file, path.rpartition("/")[2])


@ftp.command("put")
def put(
    file: Annotated[Path, typer.Argument(metavar="FILE")], path: Remote, system: System = None, data: Data = None
) -> None:
    """Send a file to the vehicle, in place of one that is there."""
    from petalbus.daemon.paths import DataPaths
    from petalbus.schemas.stamps import new_id

    folder = DataPaths.of(data).root / "transfers"
    copy = folder / f"put-{new_id()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    except OSError as error:
        raise BadUsage(f"{error.filename}: {error.strerror}") from None
    try:
        with Bar(path, unit="B") as show:
            wanted = {"path": path, "file": copy.name}
            run(ask(data, "mavlink.ftp.put", wanted, timeout=_TRANSFER_S, on_progress=show, system=system))
    finally:
        copy.unlink(missing_ok=True)
    say(f"{file} is {path} on the vehicle")


@ftp.command("rm")
def rm(path: Remote, system: System = None, data: Data = None) -> None:
    """Remove a file."""
    run(ask(data, "mavlink.ftp.remove", {"path": path}, timeout=_SECONDS, system=system))


@ftp.command("mkdir")
def mkdir(path: Remote, system: System = None, data: Data = None) -> None:
    """Make a folder."""
    run(ask(data, "mavlink.ftp.mkdir", {"path": path}, timeout=_SECONDS, system=system))


@ftp.command("rmdir")
def rmdir(path: Remote, system: System = None, data: Data = None) -> None:
    """Remove an empty folder."""
    run(ask(data, "mavlink.ftp.rmdir", {"path": path}, timeout=_SECONDS, system=system))


@ftp.command("mv")
def mv(old: Remote, new: Remote, system: System = None, data: Data = None) -> None:
    """Rename a file or folder."""
    run(ask(data, "mavlink.ftp.rename", {"old": old, "new": new}, timeout=_SECONDS, system=system))


@ftp.command("crc")
def crc(path: Remote, system: System = None, data: Data = None, json: Json = False) -> None:
    """Show a file's CRC-32, as the vehicle computes it."""
    told = run(ask(data, "mavlink.ftp.crc", {"path": path}, timeout=60.0, system=system))
    say_json(told) if json else say(f"{told['crc32']:08x}")


@log.command("list")
def list_logs(system: System = None, data: Data = None, json: Json = False) -> None:
    """List the flight logs."""
    logs = run(ask(data, "mavlink.log.list", {}, timeout=30.0, system=system))["logs"]
    if json:
        for one in logs:
            say_json(one)
    else:
        table(
            ("ID", ">BYTES", "TIME"), [(one["id"], one["size"], _when(one["time_utc"])) for one in logs], empty="none"
        )


@log.command("get")
def get_log(
    number: Annotated[int, typer.Argument(metavar="ID", help="as `log list` shows it")],
    file: Local = None,
    system: System = None,
    data: Data = None,
) -> None:
    """Fetch a flight log by the log messages. (By FTP it is quicker where the vehicle has it.)"""
    with Bar(f"log {number}", unit="B") as show:
        told = run(ask(data, "mavlink.log.get", {"id": number}, timeout=_TRANSFER_S, on_progress=show, system=system))
    _bring(told["file"], file, f"log-{number}")


@log.command("erase")
def erase(
    yes: Annotated[bool, typer.Option("--yes", help="Yes, all of them.")] = False,
    system: System = None,
    data: Data = None,
) -> None:
    """Erase all flight logs on the vehicle."""
    if not yes:
        raise BadUsage("this erases all logs on the vehicle; say --yes")
    left = run(ask(data, "mavlink.log.erase", {}, timeout=60.0, system=system))["left"]
    say("all logs are erased" if not left else f"{len(left)} logs are still there")


def shell(
    command: Annotated[list[str], typer.Argument(metavar="COMMAND...", help="such as: ver all")],
    timeout: Annotated[float, typer.Option("--timeout", metavar="SECONDS", min=0.1, max=600)] = 10.0,
    system: System = None,
    data: Data = None,
) -> None:
    """Run a line in PX4's shell, and print what it prints."""
    wanted = {"command": " ".join(command), "timeout": timeout}
    told = run(ask(data, "mavlink.shell", wanted, timeout=timeout, system=system))
    say(told["output"].rstrip("\n"))
    if not told["complete"]:
        raise Refused("the output may have holes: the shell's prompt did not come back", code="shell_incomplete")


def record(
    file: Annotated[Path, typer.Argument(metavar="FILE.tlog")],
    seconds: Annotated[float | None, typer.Option("--seconds", min=0.1, help="End after so long.")] = None,
    data: Data = None,
) -> None:
    """Write the vehicle's frames into a .tlog, as ground stations read it, until Ctrl-C."""
    count = run(_record(file, seconds, data), show_log=True)
    say(f"{count} frames in {file}")


async def _record(file: Path, seconds: float | None, data: Data) -> int:
    import asyncio
    import time

    from petalbus.handlers.mavlink.decode import frame_of
    from petalbus.handlers.mavlink.files.tlog import TlogWriter
    from petalbus.schemas.stamps import new_id

    count = 0
    async with client(data) as bus:
        name = f"record-{new_id()}"
        writer = await asyncio.to_thread(TlogWriter, file)
        try:
            async with asyncio.timeout(seconds), bus.subscribe("mavlink.rx", name=name) as records:
                async for one in records:
                    stored_ms = int((one.stream_id or "0").partition("-")[0])
                    count += writer.write([(stored_ms * 1000 or time.time_ns() // 1000, frame_of(one))])
        except (TimeoutError, asyncio.CancelledError):
            pass  # that is how it ends
        finally:
            await asyncio.to_thread(writer.close)
            await bus.call("XGROUP", "DESTROY", bus.keys.topic("mavlink.rx"), f"{bus.app}.{name}")
    if writer.lost:
        raise Refused(f"{writer.lost} frames could not be written to {file}", code="frames_lost")
    return count


def _bring(from_: str, to: Path | None, name: str) -> None:
    """Move what came to where it is wanted."""
    target = Path(to) if to is not None else Path(name)
    if target.is_dir():
        target /= name
    try:
        shutil.move(from_, target)
    except OSError as error:
        raise Refused(f"{from_} cannot be moved to {target}: {error}. Is the bus on this machine?") from None
    say(f"{target}: {target.stat().st_size} bytes")


def _when(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S") if seconds else "?"
