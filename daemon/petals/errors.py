"""What the runtime of petals says when something is wrong.

RuntimeProblem
├── ChoicesError     a file that says which petals run is broken, or cannot be written
├── UnknownPetal     there is no petal of that name
├── LoadFailed       a petal's module or class cannot be loaded
└── ProcessEnded     a petal's process ended by itself
"""

from __future__ import annotations


class RuntimeProblem(Exception):
    """Base of them."""

    code = "petals"


class ChoicesError(RuntimeProblem):
    """A file that says which petals run is broken, or cannot be written."""

    code = "petals_file"


class UnknownPetal(RuntimeProblem):
    """There is no petal of that name."""

    code = "unknown_petal"


class LoadFailed(RuntimeProblem):
    """A petal's module or class cannot be loaded."""

    code = "petal_not_loaded"


class ProcessEnded(RuntimeProblem):
    """A petal's process ended by itself."""

    code = "petal_process_ended"
