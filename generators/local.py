"""What a generator takes by itself where its caller gives no accelerator."""

from __future__ import annotations

from accelerate import Accelerator
from torch import nn


def local_accelerator(accelerator: Accelerator | None, network: nn.Module | None) -> Accelerator:
    """The accelerator itself, else one in full precision for the device of a network.

    Args:
        accelerator: that of a job or of the caller, or None.
        network: the teacher, which stays where it is; None: the device is that of accelerate's choice.
    """
    if accelerator is not None:
        return accelerator
    weight = None if network is None else next(network.parameters(), None)
    return Accelerator(cpu=weight is not None and weight.device.type == "cpu")
