"""Passes of networks over many images in chunks, so that the size of a batch bounds the memory of every pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from synthkd.rng import Rows
from synthkd.taps import evaluating, observe
from synthkd.types import BatchNormStatistics, InBlocks, Outputs

Tick = Callable[[int], bool]
"""Called after each chunk with the number of its images; False ends the pass there."""


def go_on(_: int) -> bool:
    """The tick of a pass that nobody watches."""
    return True


def in_chunks(run: Callable[..., Tensor], size: int, *inputs: InBlocks, tick: Tick = go_on) -> Tensor:
    """What `run` gives for chunks of the inputs, one after another: `run(*inputs)` with less memory.

    Args:
        run: gives a row for each row of its arguments, which depends on no other row.
        size: largest number of rows of a chunk, at least 1.
        inputs: `[N, ...]` each, N at least 1.
        tick: called after each chunk.

    Returns:
        `[N, ...]`; fewer rows, those of the first chunks, if `tick` ended the pass.
    """
    results = []
    for parts in zip(*(value.split(size) for value in inputs), strict=True):
        results.append(run(*parts))
        if not tick(len(parts[0])):
            break
    return results[0] if len(results) == 1 else torch.cat(results)


def sample_in_chunks(
    sample: Callable[[Tensor, Rows], Tensor], size: int, labels: Tensor, rng: Rows, tick: Tick = go_on
) -> Tensor:
    """Images of a generator, at most `size` at once: image i is a function of its label and of row `rng.start + i`.

    Args:
        sample: takes labels and the random rows of their images.
        size: largest number of images of a call, at least 1.
        labels: int64 `[N]`, N at least 1.
        rng: of all images.
        tick: called after each chunk.

    Returns:
        What `sample` returns, `[N, C, H, W]`, or fewer images, as `in_chunks`.
    """
    numbers = torch.arange(len(labels))

    def of(part: Tensor, numbers: Tensor) -> Tensor:
        return sample(part, replace(rng, start=rng.start + int(numbers[0])))

    return in_chunks(of, size, labels, numbers, tick=tick)


def features_in_chunks(run: Callable[[Tensor], Outputs], size: int, images: Tensor) -> Mapping[str, Tensor]:
    """The features of `run(images)`, from passes over at most `size` images.

    Args:
        run: a network without gradient, of which each image's features depend on no other image.
        size: at least 1.
        images: `[N, C, H, W]`, N at least 1.
    """
    passes = [run(part).features for part in images.split(size)]
    return passes[0] if len(passes) == 1 else {path: torch.cat([one[path] for one in passes]) for path in passes[0]}


def observe_in_chunks(
    model: nn.Module,
    images: Tensor,
    size: int,
    device: torch.device,
    features: Sequence[str] = (),
    statistics: bool = False,
    tick: Tick = go_on,
) -> Outputs:
    """What a network in eval mode makes of images, without gradient; as one pass, up to rounding.

    Args:
        model: on `device`; its train/eval modes are restored.
        images: float32 `[N, C, H, W]` in [0, 1], N at least 1, on any device.
        size: largest number of images of a pass, at least 1.
        device: of the model.
        features, statistics: see `synthkd.taps.Taps`.
        tick: called after each chunk.

    Returns:
        Logits and features on the CPU, of fewer images if `tick` ended the pass; the moments of all these images.
    """
    passes: list[Outputs] = []
    with evaluating(model), torch.no_grad():
        for part in images.split(size):
            outputs = observe(model, part.to(device), features, statistics)
            on_cpu = {path: value.cpu() for path, value in outputs.features.items()}
            passes.append(replace(outputs, logits=outputs.logits.cpu(), features=on_cpu))
            if not tick(len(part)):
                break
    return Outputs(
        torch.cat([one.logits for one in passes]),
        {path: torch.cat([one.features[path] for one in passes]) for path in features},
        joined_statistics([one.statistics for one in passes], [len(one.logits) for one in passes]),
    )


def joined_statistics(
    parts: Sequence[Mapping[str, BatchNormStatistics]], counts: Sequence[int]
) -> dict[str, BatchNormStatistics]:
    """The moments of all images together, from those of chunks.

    Args:
        parts: of each chunk, module path -> moments.
        counts: images of each chunk.
    """
    if len(parts) == 1:
        return dict(parts[0])
    joined = {}
    for path, first in parts[0].items():
        weights = torch.tensor(counts, device=first.mean.device).float()[:, None] / sum(counts)
        means, variances = (torch.stack([getattr(part[path], name) for part in parts]) for name in ("mean", "var"))
        mean = (weights * means).sum(0)
        # Within the chunks and between them.
        joined[path] = replace(first, mean=mean, var=(weights * (variances + (means - mean).square())).sum(0))
    return joined
