"""What surrounds every job: which foreign code it may run, and its errors when disk or memory run out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar, cast

from synthkd.imports import allowing
from synthkd.pipelines.config import JobConfig
from synthkd.pipelines.run.disk import resources
from synthkd.system.environment import float32_by_default

Work = TypeVar("Work", bound=Callable[..., Any])


def trusting(job: Work) -> Work:
    """Decorator of a job: code runs only if its configuration names it, or a file in a folder of its `trust` does.

    A lack of disk or memory is a `CheckpointError`, as on the command line. New floats are float32.
    """

    @functools.wraps(job)
    def run(config: JobConfig, **options: Any) -> Any:
        with float32_by_default(), resources(job.__name__), trusted_by(config):
            return job(config, **options)

    return cast(Work, run)


def trusted_by(config: JobConfig) -> AbstractContextManager[None]:
    """Context manager in which code runs only if this configuration, or a file in a folder that it trusts, names it."""
    trust = config.trust
    folders = () if isinstance(trust, bool) else (trust,) if isinstance(trust, str) else trust
    return allowing(config.model_dump(), folders, programs=trust is True)
