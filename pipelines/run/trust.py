"""Which foreign code a job may run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from synthkd.imports import allowing
from synthkd.pipelines.config import JobConfig

Work = TypeVar("Work", bound=Callable[..., Any])


def trusting(job: Work) -> Work:
    """Decorator of a job: code runs only if its configuration names it, or a file in a folder of its `trust` does."""

    @functools.wraps(job)
    def run(config: JobConfig, **options: Any) -> Any:
        folders = (config.trust,) if isinstance(config.trust, str) else config.trust
        with allowing(config.model_dump(), folders):
            return job(config, **options)

    return cast(Work, run)
