"""Count the parameters of a network before it is built, and refuse one that is too large."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from synthkd.errors import ConfigError

LARGEST = 1_000_000_000
"""Largest number of parameters: 4 GB, three times that with an optimiser's moments. Networks for small images are far
below it, so more is a wrong number in a recipe."""

Network = TypeVar("Network", bound=nn.Module)


def in_proportion(make: Callable[[], Network], what: str, most: int = LARGEST) -> Network:
    """The network that `make` builds, if its size is within bounds.

    Args:
        make: builds the network; it is called twice, and the first call draws no random numbers.
        what: the network and the keys that set its size, for the error.
        most: largest number of parameters.

    Raises:
        ConfigError: more parameters than `most`.
    """
    # The first call is on the meta device, where tensors have shapes and no memory.
    try:
        with torch.device("meta"), _Unfilled():
            count = sum(parameter.numel() for parameter in make().parameters())
    except Exception as error:
        # Any failure but that of the size comes again below, or is one of the meta device alone.
        count = 2**63 if "overflow" in str(error).lower() else 0
    if count > most:
        raise ConfigError(f"{what}: that makes {count:,} parameters, at most {most:,} are allowed; take less")
    return make()


class _Unfilled(TorchFunctionMode):
    """Skips normal draws, since the first on the meta device imports a compiler, which takes seconds."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return args[0] if func is Tensor.normal_ else func(*args, **(kwargs or {}))
