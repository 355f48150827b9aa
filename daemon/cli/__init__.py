"""The command line, `petalbus`: one module a command, thin, each importing what it needs when it runs."""

from __future__ import annotations


def main() -> None:
    """Run the command line; exits the process with one of the codes in docs/cli.md."""
    from petalbus.daemon.cli.app import run  # `petalbus.daemon.cli` itself costs nothing to import

    raise SystemExit(run())
