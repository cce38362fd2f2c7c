"""What surrounds a job and is recorded nowhere: variables of the environment, and torch's default type of floats."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from synthkd.errors import ConfigError

LOG = logging.getLogger(__name__)

TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets for every process."""
_IGNORED = ("ACCELERATE_", "OMPI_", "PMI_", "MV2_")
_MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


@contextmanager
def own_environment() -> Iterator[None]:
    """Context manager for code that accelerate starts in: it sees no settings but those of torchrun.

    Settings of accelerate (`ACCELERATE_GRADIENT_ACCUMULATION_STEPS`, ...) are those of the recipe alone. Processes are
    started by torchrun alone, so sizes that MPI set, or that were left over, are ignored with a warning.

    Raises:
        ConfigError: some variables of torchrun are set and others are not.
    """
    names = [name for name in os.environ if name.startswith(_IGNORED)]
    present = [name for name in TORCHRUN if name in os.environ]
    if 0 < len(present) < len(TORCHRUN):
        if {"RANK", "LOCAL_RANK"} & {*present}:
            missing = " and ".join(name for name in TORCHRUN if name not in present)
            raise ConfigError(f"the environment has {present[0]}, but no {missing}: start with torchrun, or unset it")
        names += present
    for name in ("WORLD_SIZE", *_MPI_SIZES):
        if name in names and os.environ[name] != "1":
            LOG.warning("%s=%s is ignored: torchrun starts several processes", name, os.environ[name])
    aside = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(aside)


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Context manager or decorator in which new floats are float32, whatever the caller has set; it is set again."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
