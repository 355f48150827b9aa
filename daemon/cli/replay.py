"""`petalbus replay`: recorded history into a fresh bus."""

from __future__ import annotations


def replay() -> None:
    """To come."""
