"""Checks that each example has a gradient of its own, which clipping can bound, in a network trained by DP-SGD.

Layers are known by their class. What a network's own code does with a batch is tried: on noise, and in each pass.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from synthkd.errors import ConfigError
from synthkd.rng import stream

TRIED_IMAGES = 4
"""Images of noise on which `require_independent` tries a network."""
JITTER = 0.01
"""Standard deviation of the noise on the weights that are tried, far below that of weights that were learned."""
LARGEST_CHANGE = 1e-4
"""Of a logit beside the largest one: rounding changes less, and one image of others that depend on it more."""


def require_trainable(model: nn.Module) -> None:
    """Check that no layer mixes the examples of a batch, and that the model learns by gradients alone.

    Raises:
        ConfigError: a BatchNorm layer, which mixes the examples of a batch, or an InstanceNorm layer with statistics.
    """
    # BatchNorm gives an example an influence on the gradients of others, which clipping one gradient does not bound;
    # running statistics are learned from examples without any noise.
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ConfigError(
                f"training.dp: layer {name} is a BatchNorm, which mixes the examples of a batch and keeps their mean; "
                "take a network without BatchNorm; for one of the zoo set model.norm=group"
            )
        if isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.track_running_stats:
            raise ConfigError(f"training.dp: layer {name} keeps statistics of its inputs; turn track_running_stats off")


@torch.no_grad()
def require_independent(model: nn.Module, images: Tensor) -> None:
    """Check on noise that the logits of an image depend on that image alone in the model's present mode.

    Args:
        model: unchanged, as is torch's global random state.
        images: float32 `[N, C, H, W]`, of which only the shape of an image and the device are used.

    Raises:
        ConfigError: the logits of an image change with the other images of its batch.
    """
    rng = stream(0, "noise that tries independence")
    shape = (TRIED_IMAGES, *images.shape[1:])
    first = torch.rand(shape, generator=rng).to(images.device)
    # Weights near those of the model, since a layer of weights 0 would hide what comes before it.
    tensors = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for name, p in model.named_parameters():
        tensors[name] = p + JITTER * torch.randn(p.shape, generator=rng).to(p.device, p.dtype)

    def logits(batch: Tensor, row: int) -> Tensor:
        torch.manual_seed(row)  # dropout is the same for both batches
        answer: Tensor = functional_call(model, tensors, (batch,))[row].float()
        return answer

    with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
        for row in range(TRIED_IMAGES):
            second = torch.rand(shape, generator=rng).to(images.device)
            second[row] = first[row]
            alone, beside = logits(first, row), logits(second, row)
            if bool(((alone - beside).abs() > LARGEST_CHANGE * alone.abs().max()).any()):
                raise ConfigError(
                    "training.dp: the network's logits of an image change with the other images of its batch, or by a "
                    "chance other than torch's, so no clipping bounds an image; use a network that takes each alone"
                )


def require_one_row_each(model: nn.Module, count: int) -> None:
    """Check after the forward pass of a model inside Opacus that each layer took one row for each image.

    Args:
        model: the module that Opacus computes gradients of.
        count: images of the pass.

    Raises:
        ConfigError: a layer took another number of rows.
    """
    # Opacus takes each row of a layer's input for an example and clips it alone: two rows of an image count twice, and
    # a row that is no image's is added to the gradient of the first.
    for name, layer in model.named_modules():
        for inputs in getattr(layer, "activations", ()):  # of each call of the layer
            shape = list(inputs[-1].shape)
            if shape[:1] != [count]:
                raise ConfigError(
                    f"training.dp: layer {name} takes an input of {shape} for {count} images, and each row is clipped "
                    "alone; use a network whose layers take one row for each image, first in their input"
                )


def require_gradients(model: nn.Module) -> None:
    """Check after the backward pass of a model inside Opacus that each trainable parameter has gradients of examples.

    Raises:
        ConfigError: a parameter has none.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and getattr(parameter, "grad_sample", None) is None:
            raise ConfigError(
                f"training.dp: parameter {name} has no gradient, since the logits do not use each output of its layer; "
                "take it out, or set its requires_grad to False"
            )
