"""What the runtime of petals says when something is wrong.

RuntimeProblem
├── ChoicesError     a file that says which petals run is broken, or cannot be written
├── UnknownPetal     there is no petal of that name
├── LoadFailed       a petal's module or class cannot be loaded
├── NotWanted        a choice says that the petal does not run; its name was not known before
├── ChosenOtherwise  choices say that the petal lives otherwise; its name was not known before
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


class NotWanted(RuntimeProblem):
    """A choice says that the petal does not run; it goes by a name that was not known before."""

    code = "petal_not_wanted"


class ChosenOtherwise(RuntimeProblem):
    """Choices say that the petal lives elsewhere, or needs more; they go by a name that was not known before."""

    code = "petal_chosen_otherwise"


class ProcessEnded(RuntimeProblem):
    """A petal's process ended by itself."""

    code = "petal_process_ended"
