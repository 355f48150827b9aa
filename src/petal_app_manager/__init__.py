"""The import paths that existing petals use: they lead to `petalbus`, and nothing of ours imports this package."""

from petalbus._version import __version__ as __version__
from petalbus.petals.config import Config as Config
