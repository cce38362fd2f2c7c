"""How large a network would be, known before it is built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from synthkd.errors import ConfigError

LARGEST = 1_000_000_000
"""Parameters: 4 GB, and three times that with an optimiser's moments. Networks here are for small images."""

Network = TypeVar("Network", bound=nn.Module)


def in_proportion(make: Callable[[], Network], what: str, most: int = LARGEST) -> Network:
    """What `make` builds, counted first where tensors have shapes and no memory.

    Args:
        make: builds the network; it is called twice, and only the second call draws random numbers.
        what: the network and the keys that set its size, for the message.
        most: parameters that it may have.

    Raises:
        ConfigError: more than that.
    """
    try:
        with torch.device("meta"), _Unfilled():
            count = sum(parameter.numel() for parameter in make().parameters())
    except Exception as error:  # what fails for another reason than its size fails below again, or only without memory
        count = 2**63 if "overflow" in str(error).lower() else 0
    if count > most:
        raise ConfigError(f"{what}: that makes {count:,} parameters, at most {most:,} are allowed; take less")
    return make()


class _Unfilled(TorchFunctionMode):
    """Without drawing what nobody sees: the first normal number on no device imports a compiler, for seconds."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return args[0] if func is Tensor.normal_ else func(*args, **(kwargs or {}))
