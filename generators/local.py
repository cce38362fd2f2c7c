"""What generators do alike as they are built: accelerator, precision, faster copies, and a check of the teacher."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from accelerate import Accelerator
from torch import nn

from synthkd.errors import ConfigError, ModelError
from synthkd.models.channels_last import take_channels_last
from synthkd.models.classifier import Classifier, Network
from synthkd.models.folding import fold_batch_norm
from synthkd.models.layout import head
from synthkd.system.environment import own_environment
from synthkd.taps import INPUT, has_statistics


def local_accelerator(accelerator: Accelerator | None, network: nn.Module | None) -> Accelerator:
    """The accelerator itself, else one for the device of a network.

    It is in full precision, unless this process had a job or an accelerator in another one: accelerate has one for all.

    Args:
        accelerator: that of a job or of the caller, or None.
        network: the teacher, which stays where it is; None: the device is that of accelerate's choice. It will take
            images in the memory order of the generator.

    Raises:
        ConfigError: accelerate has another device in this process already.
    """
    if isinstance(network, Classifier):
        take_channels_last(network)
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


def autocast_of(accelerator: Accelerator) -> Callable[[], AbstractContextManager[object]]:
    """The precision of the passes of a generator that has optimisers of its own."""
    # float16 would need a gradient scaler, which these optimisers do not have; bfloat16 needs none.
    return nullcontext if accelerator.mixed_precision == "fp16" else accelerator.autocast


def folded(network: Network, accelerator: Accelerator, penultimate: bool = False, statistics: bool = False) -> Network:
    """A frozen copy of a classifier without its foldable BatchNorm layers, or the network itself.

    On a CPU the copy gives the same numbers up to rounding in less time.

    Args:
        network: unchanged.
        accelerator: device and precision.
        penultimate: keep the input of the last layer, for `Taps`.
        statistics: keep the moments at the BatchNorm layers, for `Taps` with `statistics`.
    """
    on_cpu, in_half = accelerator.device.type == "cpu", accelerator.mixed_precision != "no"
    # A subclass may do more than its body.
    if not (on_cpu and isinstance(network, Classifier) and type(network) is Classifier):
        return network
    if not any(has_statistics(module) for module in network.modules()):
        return network
    keep = [head(network) + INPUT] if penultimate else []
    return cast(Network, fold_batch_norm(network, keep, statistics, in_half))


def require_statistics(teacher: nn.Module, batch_norm: float) -> None:
    """Refuse a teacher whose BatchNorm statistics are to be matched and are not there.

    Args:
        teacher: of the generator.
        batch_norm: weight of the matching.

    Raises:
        ModelError: the refusal.
    """
    if batch_norm > 0 and not any(has_statistics(module) for module in teacher.modules()):
        raise ModelError(
            "the teacher has no BatchNorm statistics, which the generator's batch_norm matches: set the generator's "
            "kind to pixels, or its batch_norm to 0 and rely on the other terms"
        )


def _elsewhere(device: torch.device) -> ConfigError:
    return ConfigError(
        f"generator: the teacher is on {device}, and an accelerator of this process on another device: move the "
        "teacher there, or give the accelerator"
    )
