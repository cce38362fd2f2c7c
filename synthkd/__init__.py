"""Shrink an image classifier without its training data.

`synthkd.load(directory)` loads a finished model. The jobs are functions of `synthkd.pipelines`.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from synthkd.models.files import load

__all__ = ["__version__", "load"]

try:
    __version__ = version("synthkd")
except PackageNotFoundError:  # a checkout that is on the path but not installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> object:
    # `load` needs torch, which takes seconds to import, and `synthkd --help` must not wait for it.
    if name == "load":
        from synthkd.models.files import load

        globals()["load"] = load
        return load
    raise AttributeError(f"module 'synthkd' has no attribute '{name}'")
