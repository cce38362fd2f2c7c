"""Parts of a caller's own as parts of a hybrid dataset: a map-style dataset, a function that generates, a module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from itertools import tee
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from synthkd.data.bank import MemoryBank
from synthkd.data.sources import GeneratedSource, Labeller, PartSource, Source, own_rows, takes_part
from synthkd.errors import DataError
from synthkd.models.contract import finite_logits
from synthkd.rng import derive, numpy_stream, stream
from synthkd.taps import evaluating
from synthkd.types import WHOLE, Batch, Outputs, Part, to_float

Generate = Callable[[int], Tensor | tuple[Tensor, Tensor]]
"""count -> images float32 `[count, C, H, W]` in [0, 1], alone or with the labels they were generated for."""

AnySource = Source | MemoryBank | Dataset[Any] | Generate
"""What a hybrid dataset takes as a source."""

_SAMPLES = (
    "a sample must be (image, label) or an image alone, and an image a tensor [C, H, W], a PIL image or a uint8 array"
)


class _Stateless:
    """A source whose batches follow from the seed, the step and what the caller gave."""

    def state_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing: there is no state."""


class FunctionSource(_Stateless):
    """Fresh samples of a function, such as a GAN of the caller's own. Each is in one batch and is not kept.

    Of several processes each generates its own images, at a random state of its own.

    Args:
        generate: called without gradient in the main process, at a random state that follows from seed and step.
        seed: of the random states.
    """

    annotated = False

    def __init__(self, generate: Generate, seed: int) -> None:
        self._generate, self._seed = generate, seed

    def draw(self, count: int, step: int, part: Part = WHOLE) -> list[Batch]:
        """One batch on the CPU; label -1 where the function gives no labels.

        Raises:
            DataError: another number of images or labels, or images that are not float in [0, 1].
        """
        own = part.size(count)
        wanted = max(1, own)  # of no images nobody would know the size
        with torch.random.fork_rng(range(torch.cuda.device_count())), torch.no_grad():
            torch.manual_seed(derive(self._seed, "generate" if part == WHOLE else f"generate/{part.first}", step))
            result = self._generate(wanted)
        images, labels = result if isinstance(result, tuple) else (result, torch.full((wanted,), -1))
        if len(images) != wanted or len(labels) != wanted:
            raise DataError(f"the generator gave {len(images)} images and {len(labels)} labels for a count of {wanted}")
        return [Batch(_in_flight(images.detach().cpu(), "the generator"), labels.cpu()).map(lambda value: value[:own])]


class DatasetSource(_Stateless):
    """Real images of a map-style dataset, drawn with replacement.

    A sample is `(image, label)` or an image alone. An image is a tensor `[C, H, W]`, uint8 or float in [0, 1], a PIL
    image, or a uint8 array `[H, W]` or `[H, W, C]`. All images have one size.

    Args:
        dataset: anything with `__len__` and `__getitem__`.
        seed: of the draws.
        workers: number of processes that decode images ahead of time, see `ahead`.

    Raises:
        DataError: an empty dataset.
    """

    annotated = True

    def __init__(self, dataset: Dataset[Any], seed: int, workers: int = 0) -> None:
        self._dataset, self._seed, self._workers = dataset, seed, workers
        self._size = len(cast(Sized, dataset))
        if not self._size:
            raise DataError("a dataset of real images must have an image, this one is empty")

    def draw(self, count: int, step: int, part: Part = WHOLE) -> list[Batch]:
        """One batch: images, labels or -1, and the indices in the dataset as `rows`.

        Raises:
            DataError: a sample of another form, or images of different sizes.
        """
        rows, own = self._rows(count, step, part)
        return [_labelled(_stacked([self._dataset[row] for row in rows]), rows, own)]

    def ahead(self, requests: Iterable[tuple[int, int, Part]]) -> PartSource:
        """A source of these batches in this order, which workers decode while the caller trains.

        Args:
            requests: (count, step, part) of each batch. Those of count 0 are passed over, because they are not drawn.
        """
        for_workers, here = tee(self._rows(count, step, part) for count, step, part in requests if count)
        loader = DataLoader(
            self._dataset,
            batch_sampler=cast(Any, (rows for rows, _ in for_workers)),
            num_workers=self._workers,
            collate_fn=_stacked,
            generator=stream(self._seed, "workers"),  # without it the loader draws from the caller's random state
        )
        return _Ahead(_labelled(samples, rows, own) for samples, (rows, own) in zip(loader, here, strict=True))

    def _rows(self, count: int, step: int, part: Part) -> tuple[list[int], int]:
        """Rows of this process, one at least, since of no images nobody would know the size; and how many it has."""
        rows: list[int] = numpy_stream(self._seed, "real", step).integers(0, self._size, count).tolist()
        return rows[part.of(count)] or rows[:1], part.size(count)


class _Ahead(_Stateless):
    """The batches of an iterator, one a draw."""

    annotated = True

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches

    def draw(self, count: int, step: int, part: Part = WHOLE) -> list[Batch]:
        return [next(self._batches)]


class _Whole:
    """A source that makes whole batches, of which each process takes its part."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __getattr__(self, name: str) -> object:
        return getattr(self._source, name)

    def draw(self, count: int, step: int, part: Part = WHOLE) -> list[Batch]:
        return own_rows(self._source.draw(count, step), part)


def as_source(source: AnySource, seed: int, workers: int = 0) -> PartSource:
    """The source of a hybrid dataset that draws from what the caller gave.

    Args:
        source: a memory bank, a map-style dataset, a function or module that generates, or a source already.
        seed: of its draws.
        workers: number of processes that decode a dataset.

    Raises:
        DataError: none of these.
    """
    if isinstance(source, MemoryBank):
        return GeneratedSource(source)
    # A network such as nn.Sequential has a length and items too; it generates.
    if not isinstance(source, nn.Module) and isinstance(source, Sized) and hasattr(source, "__getitem__"):
        return DatasetSource(cast("Dataset[Any]", source), seed, workers)
    if callable(source):
        return FunctionSource(source, seed)
    if not hasattr(source, "draw"):
        raise DataError(
            f"a source of images must be a MemoryBank, a map-style dataset, or a function of a count, got a "
            f"{type(source).__name__}"
        )
    own = cast(PartSource, source)
    return own if takes_part(own.draw) else cast(PartSource, _Whole(own))


def as_labeller(teacher: Labeller | nn.Module | None) -> Labeller | None:
    """A function that labels images without gradient; a module is put into eval mode for each call."""
    if not isinstance(teacher, nn.Module):
        return teacher
    network = teacher

    @torch.no_grad()
    def label(images: Tensor) -> Outputs:
        with evaluating(network):
            return Outputs(finite_logits(network(images)))

    return label


def _stacked(samples: Sequence[object]) -> tuple[Tensor, Tensor]:
    """Images `[N, C, H, W]`, uint8 or float, and labels int64 `[N]` of samples; runs in workers."""
    from torchvision.transforms.v2.functional import to_image

    pairs = [sample if isinstance(sample, tuple | list) else (sample, -1) for sample in samples]
    try:
        images = [to_image(pair[0]).as_subclass(Tensor) for pair in pairs]
        labels = torch.tensor([int(pair[1]) for pair in pairs])
    except (TypeError, ValueError, IndexError) as error:
        raise DataError(f"{_SAMPLES}, got {type(samples[0]).__name__}: {error}") from error
    if len(shapes := {tuple(image.shape) for image in images}) > 1:
        raise DataError(f"the images of a dataset must have one size, got {sorted(shapes)[:3]}; resize them")
    return torch.stack(images), labels


def _labelled(stacked: tuple[Tensor, Tensor], rows: list[int], count: int) -> Batch:
    """The first `count` of these images."""
    images, labels = stacked
    batch = Batch(_in_flight(images, "the dataset"), labels, rows=torch.tensor(rows), annotated=labels >= 0)
    return batch.map(lambda value: value[:count])


def _in_flight(images: Tensor, source: str) -> Tensor:
    """The images as float32 in [0, 1]."""
    if images.dtype == torch.uint8:
        return to_float(images)
    images = images.float()
    low, high = float(images.min()), float(images.max())
    if not 0.0 <= low <= high <= 1.0:
        raise DataError(
            f"images of {source} must be uint8, or float in [0, 1], got {low:.3g} to {high:.3g}; leave out their "
            "normalisation, and put synthkd.models.Normalize in front of the network"
        )
    return images
