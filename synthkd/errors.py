"""Errors for users, each with the exit code of the command line.

Every message is one line that says what is wrong, where, and the remedy.
"""

from __future__ import annotations


class SynthkdError(Exception):
    """Base of all errors that synthkd raises on purpose."""

    exit_code = 1
    is_silent = False
    """Whether another process prints the message; this one only ends with the exit code."""


class ConfigError(SynthkdError):
    """A configuration that cannot be run: a typo, a wrong type, a value out of bounds, or another run's directory."""

    exit_code = 2


class DataError(SynthkdError):
    """Images, labels or features that cannot be used."""

    exit_code = 3


class ModelError(SynthkdError):
    """A model or weights file that cannot be loaded, or that breaks the contract for teachers."""

    exit_code = 4


class TrainingError(SynthkdError):
    """A training that had to stop because a loss, a gradient or a weight is not finite."""

    exit_code = 5


class CheckpointError(SynthkdError):
    """A run directory or checkpoint that cannot be read, written or resumed."""

    exit_code = 6


class MissingExtraError(SynthkdError):
    """An optional package that the request needs is not installed.

    Args:
        package: import name of the missing package.
        extra: the extra of synthkd that installs it.
        purpose: what needs it, as a noun phrase.
    """

    exit_code = 7

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package '{package}': pip install 'synthkd[{extra}]'")
