"""What a generator takes by itself where its caller gives no accelerator."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn

from synthkd.errors import ConfigError
from synthkd.system.environment import own_environment


def local_accelerator(accelerator: Accelerator | None, network: nn.Module | None) -> Accelerator:
    """The accelerator itself, else one in full precision for the device of a network.

    Args:
        accelerator: that of a job or of the caller, or None.
        network: the teacher, which stays where it is; None: the device is that of accelerate's choice.

    Raises:
        ConfigError: accelerate has another device in this process already.
    """
    if accelerator is not None:
        return accelerator
    weight = None if network is None else next(network.parameters(), None)
    if weight is None:
        with own_environment():
            return Accelerator()
    try:
        with own_environment():
            local = Accelerator(cpu=weight.device.type == "cpu")
    except ValueError as error:  # accelerate has one device a process, and says only that it cannot be changed
        raise _elsewhere(weight.device) from error
    if local.device.type != weight.device.type:
        raise _elsewhere(weight.device)
    return local


def _elsewhere(device: torch.device) -> ConfigError:
    return ConfigError(
        f"generator: the teacher is on {device}, and an accelerator of this process on another device: move the "
        "teacher there, or give the accelerator"
    )
