"""`petalbus petal`: for people who write petals."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Final

import typer

from petalbus.daemon.cli.common import Data, Json, say, say_json
from petalbus.daemon.cli.exits import BadUsage, Refused

app = typer.Typer(no_args_is_help=True, help="Make petals.")

_NAME: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_MAX_NAME: Final = 32
_PREFIX: Final = "petal-"
_TAKEN: Final = frozenset(("petalbus", "vehicle", "cli", "broadcast", "tester", "echo", "vehicle-status"))
_TEMPLATE: Final = Path(__file__).parent / "petal_template"
_FILES: Final = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "gitignore": ".gitignore",
    "src/__init__.py": "src/{package}/__init__.py",
    "src/py.typed": "src/{package}/py.typed",
    "src/plugin.py": "src/{package}/plugin.py",
    "tests/test_plugin.py": "tests/test_{module}.py",
}
"""Template -> file in the new package."""


@app.command("new")
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The petal's name, such as battery-watch.")],
    directory: Annotated[
        Path | None, typer.Option("--dir", metavar="DIR", help="Where the package's folder is made; here if not given.")
    ] = None,
    data: Data = None,  # noqa: ARG001  # every command takes --data
    json: Json = False,
) -> None:
    """Make the package of a new petal: a typed handler, a route, and a test that passes."""
    words = names(name)
    target = (directory or Path()) / words["distribution"]
    files = create(target, words)
    if json:
        say_json({"petal": words["name"], "directory": str(target), "files": files})
        return
    say(f"made {target} with {len(files)} files; next:")
    say(f"  cd {target} && pip install -e '.[dev]' && pytest")


def names(name: str) -> dict[str, str]:
    """All names of a new petal, from the one that was typed. Raises BadUsage that says what a name may be."""
    petal = name.removeprefix(_PREFIX)
    if not _NAME.fullmatch(petal) or len(petal) > _MAX_NAME:
        wish = re.sub(r"-+", "-", re.sub(r"[^a-z0-9]+", "-", petal.lower())).strip("-")[:_MAX_NAME].strip("-")
        hint = f"; {wish!r} would do" if _NAME.fullmatch(wish) else ""
        raise BadUsage(
            f"{name!r} is no name for a petal: give small letters and digits in words joined by hyphens, beginning "
            f"with a letter, {_MAX_NAME} characters at most{hint}"
        )
    if petal in _TAKEN:
        raise BadUsage(f"{petal!r} is the name of a program that is on every bus; choose another one")
    from petalbus._version import __version__

    module = petal.replace("-", "_")
    return {
        "name": petal,
        "module": module,
        "distribution": f"{_PREFIX}{petal}",
        "package": f"petal_{module}",
        "class_name": "".join(word.capitalize() for word in petal.split("-")) + "Petal",
        "minimum": re.match(r"\d+(\.\d+)*", __version__)[0],  # type: ignore[index]  # a version begins with a number
    }


def create(target: Path, words: dict[str, str]) -> list[str]:
    """Write the package, all of it or nothing; the names of its files. Raises Refused when something is there."""
    if target.exists() or target.is_symlink():
        raise Refused(f"{target} is there already; nothing was written. Remove it, or choose another name or --dir")
    if not target.parent.is_dir():
        raise Refused(f"{target.parent} is no directory; nothing was written. Make it first")
    try:
        building = Path(tempfile.mkdtemp(prefix=".petal-new-", dir=target.parent))
        try:
            made = _fill(building, words)
            building.chmod(0o755)
            building.rename(target)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
    except OSError as error:
        raise Refused(f"{target} cannot be written: {error.strerror or error}; nothing is left of it") from error
    return made


def _fill(directory: Path, words: dict[str, str]) -> list[str]:
    from string import Template

    made = []
    for source, where in _FILES.items():
        name = where.format(**words)
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        text = (_TEMPLATE / f"{source}.tmpl").read_text(encoding="utf-8")
        file.write_text(Template(text).substitute(words), encoding="utf-8")
        made.append(name)
    return sorted(made)
