"""The memory bank: a preallocated ring of generated images with labels, teacher logits, priorities and ages.

Adding and drawing touch the rows concerned and, for prioritized draws, one path of a sum tree each; nothing passes
over the bank.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthkd.errors import CheckpointError, DataError
from synthkd.rng import numpy_stream
from synthkd.settings import BankSettings
from synthkd.system.resources import errno_of, out_of_memory, reason, size
from synthkd.training.shared_rows import Block, Rows
from synthkd.types import Batch, ImageSpec, check_labels, to_float, to_uint8

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_COLUMNS = ("images", "labels", "logits", "births")
_BLOCK_BYTES = 1 << 25  # of rows that a checkpoint writes at a time


class MemoryBank:
    """A ring of at most `capacity` images; the oldest leaves first, exactly.

    Draws are with replacement and a function of (seed, step) and the bank's content.

    Args:
        spec: size, channels and classes of what is stored.
        settings: capacity, policy and storage.
        seed: the run's seed.
        directory: where `storage: disk` keeps its memory-mapped arrays; working files, not the checkpoint, which
            holds copies of its own.

    Raises:
        CheckpointError: the arrays do not fit the memory, or the disk.
    """

    def __init__(self, spec: ImageSpec, settings: BankSettings, seed: int, directory: Path | None = None) -> None:
        self.spec = spec
        self.settings = settings
        self.seed = seed
        self._directory = directory
        if settings.storage == "disk" and directory is None:
            raise DataError("bank.storage: disk needs a directory for its files")
        n = settings.capacity
        try:
            self._images = self._allocate("images", (n, *spec.shape), torch.uint8)
            self._labels = self._allocate("labels", (n,), torch.int64)
            self._logits = self._allocate("logits", (n, spec.classes), torch.float32)
            self._births = self._allocate("births", (n,), torch.int64)
            self._index = _index_for(settings, spec.classes)
        except (MemoryError, RuntimeError, OSError) as error:
            told = self._too_large(error)
            if told is None:
                raise
            raise told from None  # what was met on the way says less
        self.added = 0

    def _allocate(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if self.settings.storage == "ram":
            return torch.zeros(shape, dtype=dtype)
        assert self._directory is not None
        path = self._directory / f"{name}.bin"
        count = int(np.prod(shape))
        _reserve(path, count * dtype.itemsize)
        return torch.from_file(str(path), shared=True, size=count, dtype=dtype).reshape(shape)

    def _too_large(self, error: Exception) -> CheckpointError | None:
        """What to say when the arrays do not fit; meanwhile what could be had of their files is given back."""
        spec, settings = self.spec, self.settings
        if out_of_memory(error):
            what, other = "the memory", "set bank.storage=disk" if settings.storage == "ram" else "free some"
        elif errno_of(error) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            what, other = f"{self._directory} ({reason(error)})", "choose another out="
        else:
            return None
        if self._directory is not None:
            for name in _COLUMNS:
                (self._directory / f"{name}.bin").unlink(missing_ok=True)
        needed = size(settings.capacity * (spec.channels * spec.height * spec.width + 4 * spec.classes + 16))
        return CheckpointError(
            f"bank.capacity: {settings.capacity:,} images with their logits take {needed}, which do not fit {what}; "
            f"make it smaller, or {other}"
        )

    def __len__(self) -> int:
        return min(self.added, self.settings.capacity)

    @property
    def nbytes(self) -> int:
        """Bytes of the preallocated arrays."""
        arrays = (self._images, self._labels, self._logits, self._births)
        return sum(a.numel() * a.element_size() for a in arrays)

    def checkpoint_bytes(self, kept: int, between: int) -> int:
        """Bytes of `kept` checkpoints of a full bank to which `between` images are added from one to the next."""
        capacity = self.settings.capacity
        rows = min(kept * capacity, capacity + (kept - 1) * between)
        index = 0 if self.settings.policy == "fifo" else 8 * capacity  # a number for each image, copied each time
        return rows * self.nbytes // capacity + kept * index

    def add(self, images: Tensor, labels: Tensor, teacher_logits: Tensor, priorities: Tensor | None = None) -> Tensor:
        """Store a batch, overwriting the oldest images once the ring is full.

        Args:
            images: `[N, C, H, W]`, uint8, or float in [0, 1] which is rounded to uint8.
            labels: int64 `[N]` in `[0, classes)`.
            teacher_logits: float32 `[N, K]`.
            priorities: float `[N]`, positive; None gives each the largest priority seen (1 at first).

        Returns:
            int64 `[N]`, the slots written.

        Raises:
            DataError: on a wrong shape or label, or a batch larger than the bank.
        """
        count = len(images)
        if tuple(images.shape[1:]) != self.spec.shape or teacher_logits.shape != (count, self.spec.classes):
            raise DataError(
                f"memory bank: expected images [N, {', '.join(map(str, self.spec.shape))}] and logits "
                f"[N, {self.spec.classes}], got {tuple(images.shape)} and {tuple(teacher_logits.shape)}"
            )
        if count > self.settings.capacity:
            raise DataError(f"memory bank: a batch of {count} does not fit bank.capacity={self.settings.capacity}")
        labels = labels.cpu()
        check_labels(labels, self.spec.classes, "memory bank")
        slots = torch.arange(self.added, self.added + count) % self.settings.capacity
        self._images[slots] = (images if images.dtype == torch.uint8 else to_uint8(images)).cpu()
        self._labels[slots] = labels
        self._logits[slots] = teacher_logits.detach().float().cpu()
        self._births[slots] = torch.arange(self.added, self.added + count)
        rows = slots.numpy()
        self._index.replace(rows, labels.numpy(), None if priorities is None else _as_priorities(priorities, count))
        self.added += count
        return slots

    def draw(self, count: int, step: int, purpose: str = "bank") -> Batch:
        """Draw a batch by the bank's policy; images float32 in [0, 1], stored logits and slots beside them.

        Raises:
            DataError: when the bank is empty.
        """
        if len(self) == 0:
            raise DataError("memory bank is empty: give the run a pregenerate or joint phase before it is drawn from")
        slots, weights = self._index.draw(count, len(self), numpy_stream(self.seed, purpose, step))
        rows = torch.from_numpy(slots)
        return Batch(
            images=to_float(self._images[rows]),
            labels=self._labels[rows],
            teacher_logits=self._logits[rows],
            weights=None if weights is None else torch.from_numpy(weights.astype(np.float32)),
            slots=rows,
        )

    def newest(self, count: int) -> Batch:
        """The `count` newest images (fewer when the bank holds fewer), oldest of them first."""
        count = min(count, len(self))
        rows = torch.arange(self.added - count, self.added) % self.settings.capacity
        return Batch(to_float(self._images[rows]), self._labels[rows], self._logits[rows], slots=rows)

    def ages(self, slots: Tensor) -> Tensor:
        """How many images were added since each slot was written, int64 `[N]`; the newest has age 0."""
        return self.added - 1 - self._births[slots]

    def reprioritise(self, slots: Tensor, priorities: Tensor) -> None:
        """Give slots new priorities (positive, finite); without effect on policies that have none."""
        self._index.reprioritise(slots.numpy(), _as_priorities(priorities, len(slots)))

    def class_counts(self) -> Tensor:
        """Images of each class, int64 `[K]`."""
        return torch.bincount(self._labels[: len(self)], minlength=self.spec.classes)

    def rows(self) -> Rows:
        """The images with labels and logits, oldest first, as they are until the next `add`; nothing is copied."""
        return Rows(self.added - len(self), self.added, self._blocks)

    def _blocks(self, first: int) -> Iterator[Block]:
        count = max(1, _BLOCK_BYTES * self.settings.capacity // self.nbytes)
        for start in range(first, self.added, count):
            slots = torch.arange(start, min(start + count, self.added)) % self.settings.capacity
            yield Block(start, {name: getattr(self, f"_{name}")[slots] for name in ("images", "labels", "logits")})

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows(), "index": self._index.state_dict(len(self))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        rows = rows_of(state)
        self.added = rows.stop
        for block in rows.blocks(rows.first):
            shape = tuple(block.columns["images"].shape[1:])
            if len(self) != rows.stop - rows.first or shape != self.spec.shape:
                raise DataError(
                    f"memory bank: the saved bank holds {rows.stop - rows.first} images {shape}, this one takes "
                    f"{self.settings.capacity} of {self.spec.shape}"
                )
            births = torch.arange(block.first, block.first + len(block))
            slots = births % self.settings.capacity
            self._births[slots] = births
            for name, column in block.columns.items():
                getattr(self, f"_{name}")[slots] = column
        self._index = _index_for(self.settings, self.spec.classes)
        self._index.load_state_dict(state["index"], self._labels[: len(self)].numpy())


def rows_of(state: Mapping[str, Any]) -> Rows:
    """The images in the state of a bank, with their labels and logits, oldest first."""
    if "rows" in state:
        rows: Rows = state["rows"]
        return rows
    order = state["births"].argsort()  # of a version that copied everything, slot by slot
    columns = {name: state[name][order] for name in ("images", "labels", "logits")}
    first = int(state["added"]) - len(order)
    return Rows(first, int(state["added"]), lambda _: iter([Block(first, columns)] if len(order) else []))


def _reserve(path: Path, size: int) -> None:
    """Make a file of so many bytes that are really there: a page of a map that the disk has no room for kills."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except AttributeError:  # a system without it
            pass
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system without it
                raise


def _as_priorities(priorities: Tensor, count: int) -> Floats:
    values = np.asarray(priorities.detach().cpu().numpy(), dtype=np.float64)
    if values.shape != (count,) or not np.all(np.isfinite(values)) or not np.all(values > 0):
        raise DataError(f"memory bank: priorities must be {count} positive finite numbers")
    return values


class _Uniform:
    """Every image equally likely."""

    def replace(self, slots: Ints, labels: Ints, priorities: Floats | None) -> None: ...

    def reprioritise(self, slots: Ints, priorities: Floats) -> None: ...

    def draw(self, count: int, size: int, rng: np.random.Generator) -> tuple[Ints, Floats | None]:
        return rng.integers(0, size, count), None

    def state_dict(self, used: int) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any], labels: Ints) -> None: ...


class _ClassBalanced(_Uniform):
    """Every class that has images equally likely, then every image of it; swap-removal keeps each class dense."""

    def __init__(self, capacity: int, classes: int) -> None:
        self._members: list[list[int]] = [[] for _ in range(classes)]
        self._position = np.full(capacity, -1, dtype=np.int64)
        self._label = np.zeros(capacity, dtype=np.int64)

    def replace(self, slots: Ints, labels: Ints, priorities: Floats | None) -> None:
        position, label_of = self._position, self._label
        for slot, label in zip(slots.tolist(), labels.tolist(), strict=True):
            if position[slot] >= 0:
                old = self._members[label_of[slot]]
                last = old.pop()
                if last != slot:
                    old[position[slot]] = last
                    position[last] = position[slot]
            position[slot] = len(self._members[label])
            label_of[slot] = label
            self._members[label].append(slot)

    def draw(self, count: int, size: int, rng: np.random.Generator) -> tuple[Ints, Floats | None]:
        present = [members for members in self._members if members]
        chosen = rng.integers(0, len(present), count)
        place = rng.random(count)
        picks = [present[c][int(p * len(present[c]))] for c, p in zip(chosen.tolist(), place.tolist(), strict=True)]
        return np.array(picks, dtype=np.int64), None

    def state_dict(self, used: int) -> dict[str, Any]:
        return {"position": torch.from_numpy(self._position[:used].copy())}

    def load_state_dict(self, state: Mapping[str, Any], labels: Ints) -> None:
        position = state["position"].numpy()
        self._position[: len(position)] = position
        self._label[: len(labels)] = labels
        for label, members in enumerate(self._members):
            slots = np.flatnonzero(labels == label)
            members[:] = slots[np.argsort(position[slots])].tolist()


class _Prioritized(_Uniform):
    """Draws in proportion to `priority ** exponent`, by a sum tree over the slots (Schaul et al. 2016, appendix B)."""

    def __init__(self, capacity: int, exponent: float, importance: float) -> None:
        self._leaves = 1 << max(1, (capacity - 1).bit_length())
        self._tree = np.zeros(2 * self._leaves, dtype=np.float64)
        self._exponent = exponent
        self._importance = importance
        self._largest = 1.0

    def replace(self, slots: Ints, labels: Ints, priorities: Floats | None) -> None:
        self.reprioritise(slots, np.full(len(slots), self._largest) if priorities is None else priorities)

    def reprioritise(self, slots: Ints, priorities: Floats) -> None:
        if not len(slots):
            return
        self._largest = max(self._largest, float(priorities.max(initial=0.0)))
        nodes = slots + self._leaves
        self._tree[nodes] = priorities**self._exponent
        while nodes[0] > 1:
            nodes = np.unique(nodes >> 1)
            self._tree[nodes] = self._tree[2 * nodes] + self._tree[2 * nodes + 1]

    def draw(self, count: int, size: int, rng: np.random.Generator) -> tuple[Ints, Floats | None]:
        total = self._tree[1]
        target = rng.random(count) * total
        nodes = np.ones(count, dtype=np.int64)
        while nodes[0] < self._leaves:
            nodes *= 2
            left = self._tree[nodes]
            # a right child of weight 0 is never entered, whatever rounding left in the target
            right = (target >= left) & (self._tree[nodes + 1] > 0)
            target -= np.where(right, left, 0.0)
            nodes += right
        probability = self._tree[nodes] / total
        return nodes - self._leaves, (size * probability) ** -self._importance

    def state_dict(self, used: int) -> dict[str, Any]:
        return {
            "weights": torch.from_numpy(self._tree[self._leaves : self._leaves + used].copy()),
            "largest": self._largest,
        }

    def load_state_dict(self, state: Mapping[str, Any], labels: Ints) -> None:
        weights = state["weights"].numpy()
        self._largest = float(state["largest"])
        self._tree[:] = 0.0
        self._tree[self._leaves : self._leaves + len(weights)] = weights
        level = self._leaves
        while level > 1:  # parents of a whole level are its pairwise sums, as the single updates computed them
            self._tree[level // 2 : level] = self._tree[level : 2 * level].reshape(-1, 2).sum(axis=1)
            level //= 2


def _index_for(settings: BankSettings, classes: int) -> _Uniform:
    if settings.policy == "prioritized":
        return _Prioritized(settings.capacity, settings.priority_exponent, settings.importance_exponent)
    if settings.policy == "class_balanced":
        return _ClassBalanced(settings.capacity, classes)
    return _Uniform()
