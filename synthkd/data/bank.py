"""The memory bank: generated images with labels, the teacher's logits, priorities and ages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from synthkd.data.bank_disk import DiskRows, age_ordered, bytes_per_image
from synthkd.data.bank_rows import BankRows, saved_rows, shortage_explained
from synthkd.data.replay import Floats, replay_policy
from synthkd.errors import DataError
from synthkd.rng import numpy_stream
from synthkd.settings import BankSettings
from synthkd.training.shared_rows import Rows
from synthkd.types import WHOLE, Batch, ImageSpec, Part, check_labels, to_float, to_uint8


class BankImage(NamedTuple):
    """An image of a memory bank; torch's DataLoader makes a batch of the same form from several.

    Attributes:
        image: float32 `[C, H, W]` in [0, 1].
        label: int64 scalar.
        teacher_logits: float32 `[K]`.
    """

    image: Tensor
    label: Tensor
    teacher_logits: Tensor


class MemoryBank(Dataset[BankImage]):
    """At most `capacity` images, in which new images overwrite the oldest ones or those of lowest priority.

    Draws are with replacement, and a function of (seed, step) and the bank's content.

    A bank is also a map-style dataset for `DataLoader(bank, batch_size=64, shuffle=True)`, oldest image first (in the
    order of the slots with `evict: lowest_priority`). Workers of a DataLoader see the bank as it was when they started;
    `draw` and `HybridDataset` see every image at once.

    With `evict: oldest` the slots are a ring. With `evict: lowest_priority` an image may stay for the whole run, so
    checkpoints of a bank in memory cannot share rows, of which the oldest leave first: each writes the whole bank, also
    its age order. Nothing is written again while no image is added. Checkpoints of a bank on disk refer to its files.

    Args:
        spec: size, channels and classes of the images.
        settings: capacity, policy, eviction and storage; None: the defaults.
        seed: the run's seed.
        directory: where `storage: disk` keeps its files. What an earlier process left there is removed; a checkpoint
            has links of its own.
        key: of the settings in the configuration, for errors.

    Attributes:
        added: number of images that were added so far.

    Raises:
        CheckpointError: the bank does not fit the memory, or the disk.
        DataError: `storage: disk` without a directory.
    """

    def __init__(
        self,
        spec: ImageSpec,
        settings: BankSettings | None = None,
        seed: int = 0,
        directory: Path | None = None,
        key: str = "transfer_set.bank",
    ) -> None:
        settings = settings or BankSettings()
        self.spec = spec
        self.settings = settings
        self.seed = seed
        with shortage_explained(spec, settings, directory, key):
            self._rows = _rows(spec, settings, directory)
            self._policy = replay_policy(settings, settings.capacity, spec.classes)
        self.added = 0

    def __len__(self) -> int:
        return min(self.added, self.settings.capacity)

    def __getitem__(self, index: int) -> BankImage:
        slot = range(len(self))[index]  # IndexError for an index beyond the last image
        if self._is_ring:
            slot = (self.added - len(self) + slot) % self.settings.capacity
        image, label, logits = (values[0] for values in self._read(torch.tensor([slot])))
        return BankImage(to_float(image), label, logits)

    def add(self, images: Tensor, labels: Tensor, teacher_logits: Tensor, priorities: Tensor | None = None) -> Tensor:
        """Store a batch, overwriting the oldest images, or those of lowest priority, once the bank is full.

        Args:
            images: `[N, C, H, W]`, uint8, or float in [0, 1] which is rounded to uint8.
            labels: int64 `[N]` in `[0, classes)`.
            teacher_logits: float32 `[N, K]`.
            priorities: float `[N]`, positive; None gives each the largest priority so far (1 at first).

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
        pixels = images if images.dtype == torch.uint8 else to_uint8(images)
        slots = self._new_slots(count)
        births = torch.arange(self.added, self.added + count)
        self._rows.write(slots, births, pixels, labels, teacher_logits.detach().float())
        values = None if priorities is None else _as_priorities(priorities, count)
        self._rows.change(torch.from_numpy(self._policy.replace(slots.numpy(), labels.numpy(), values)))
        self.added += count
        return slots

    def draw(self, count: int, step: int, purpose: str = "bank", part: Part = WHOLE) -> Batch:
        """Draw `count` images by the bank's policy; `purpose` names the random stream, and a part of them is read.

        Returns:
            Images float32 in [0, 1] with their labels, stored logits, slots and, for prioritized draws, importance
            weights.

        Raises:
            DataError: the bank is empty.
        """
        if len(self) == 0:
            raise DataError("memory bank is empty: give the run a pregenerate or joint phase before it is drawn from")
        slots, weights = self._policy.draw(count, len(self), numpy_stream(self.seed, purpose, step))
        own = part.of(count)
        return self._batch(
            torch.from_numpy(slots[own]), None if weights is None else torch.from_numpy(weights[own].astype(np.float32))
        )

    def newest(self, count: int) -> Batch:
        """The `count` newest images, or all if there are fewer, the oldest of them first."""
        return self._batch(self._by_age(torch.arange(max(0, len(self) - count), len(self))))

    def spread(self, count: int) -> Batch:
        """`count` images evenly from the oldest to the newest, or all if there are fewer."""
        size = len(self)
        return self._batch(self._by_age(torch.linspace(0, max(0, size - 1), min(count, size)).round().long()))

    @property
    def _is_ring(self) -> bool:
        return self.settings.evict == "oldest"

    def _new_slots(self, count: int) -> Tensor:
        """Slots int64 `[count]` for new images: free ones, then those of the images that leave."""
        if self._is_ring:
            return torch.arange(self.added, self.added + count) % self.settings.capacity
        size = len(self)
        free = torch.arange(size, min(size + count, self.settings.capacity))
        # No image leaves for a place that another new image of the same batch could have had.
        leaving = self._policy.lowest(count - len(free), self._rows.births[:size].numpy())
        return torch.cat([free, torch.from_numpy(leaving)])

    def _by_age(self, places: Tensor) -> Tensor:
        """Slots of some images, by their places in the order of age; the oldest image has place 0."""
        if self._is_ring:
            return (self.added - len(self) + places) % self.settings.capacity
        births = self._rows.births[: len(self)].numpy()
        # Without a sort of all: a partition has the chosen ones where a sort would have them.
        return torch.from_numpy(np.argpartition(births, places.numpy())[places.numpy()]) if len(places) else places

    def _read(self, slots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        columns = self._rows.read(slots)
        return columns["images"], columns["labels"], columns["logits"]

    def _batch(self, slots: Tensor, weights: Tensor | None = None) -> Batch:
        images, labels, logits = self._read(slots)
        return Batch(to_float(images), labels, logits, weights, slots)

    def ages(self, slots: Tensor) -> Tensor:
        """How many images were added since each slot was written, int64 `[N]`; the newest has age 0."""
        newest = self.added - 1
        return (newest - slots) % self.settings.capacity if self._is_ring else newest - self._rows.births[slots]

    def reprioritise(self, slots: Tensor, priorities: Tensor) -> None:
        """Give slots new priorities (positive, finite); policies without priorities ignore them."""
        self._policy.reprioritise(slots.numpy(), _as_priorities(priorities, len(slots)))
        self._rows.change(slots)

    def class_counts(self) -> Tensor:
        """Images of each class, int64 `[K]`."""
        return torch.bincount(self._rows.labels[: len(self)], minlength=self.spec.classes)

    def rows(self) -> Rows:
        """The images with labels and logits, oldest first, as they are until the next `add`; nothing is copied."""
        # Without a ring the rows have new numbers after each `add`, above all earlier ones, so that a checkpoint takes
        # none of them for a row that it has.
        size = len(self)
        if self._is_ring:
            return self._rows.saved(self.added - size, self.added, None)
        first = self.added * self.settings.capacity
        return self._rows.saved(first, first + size, self._rows.births[:size].argsort())

    def state_dict(self) -> dict[str, Any]:
        """The images, as rows that a checkpoint shares with the one before, and the state of the policy.

        With `evict: lowest_priority` also `births` int64 `[N]`, the number of the image in each slot in use. A bank on
        disk has all that it keeps by slot as rows too, under `slots`.
        """
        if isinstance(self._rows, DiskRows):
            state = self._rows.state_dict(len(self), self._policy.columns())
            return state | {"index": self._policy.scalars(), "added": self.added, "evict": self.settings.evict}
        state = {"rows": self.rows(), "index": self._policy.state_dict(len(self))}
        return state if self._is_ring else state | {"births": self._rows.births[: len(self)].clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`, also one of an older version.

        Raises:
            DataError: images of another size, or a bank of another capacity or eviction.
        """
        evict = state.get("evict", "lowest_priority" if "rows" in state and "births" in state else "oldest")
        if evict != self.settings.evict:
            raise DataError(
                f"memory bank: the saved bank has another evict than {self.settings.evict}; set bank.evict as it was"
            )
        if "slots" in state:
            if isinstance(self._rows, DiskRows):
                self._take_files(self._rows, state)
                return
            state = age_ordered(state)
        rows = saved_rows(state)
        # Each image returns to its slot, so a resumed bank overwrites and draws as the unbroken one. A ring's follow
        # from the numbers of the rows.
        if self._is_ring:
            births = torch.arange(rows.first, rows.stop)
            slots = births % self.settings.capacity
        else:
            births, slots = state["births"].sort()
        self.added = int(births[-1]) + 1 if len(births) else 0
        if isinstance(self._rows, DiskRows):
            self._rows.begin_at(rows.first)
        for block in rows.blocks(rows.first):
            self._require(rows.stop - rows.first, tuple(block.columns["images"].shape[1:]))
            part = slice(block.first - rows.first, block.first - rows.first + len(block))
            self._rows.write(slots[part], births[part], **block.columns)
        # A new policy: the old one may know images that the state does not have.
        self._policy = replay_policy(self.settings, self.settings.capacity, self.spec.classes)
        self._policy.load_state_dict(state["index"], self._rows.labels[: len(self)].numpy())

    def _take_files(self, rows: DiskRows, state: Mapping[str, Any]) -> None:
        self.added = state["added"]
        self._require(state["used"], state["rows"].files.columns["images"][1])
        policy = replay_policy(self.settings, self.settings.capacity, self.spec.classes)
        rows.load_state_dict(state, policy.columns())
        policy.resume(state["index"], rows.labels[: len(self)].numpy())
        self._policy = policy

    def _require(self, count: int, shape: tuple[int, ...]) -> None:
        """Refuse a state of so many images unless it is of a bank as this one."""
        if len(self) != count or shape != self.spec.shape:
            raise DataError(
                f"memory bank: the saved bank holds {count} images {shape}, this one takes {self.settings.capacity} of "
                f"{self.spec.shape}"
            )


def bank_bytes(spec: ImageSpec, settings: BankSettings) -> int:
    """Bytes of the arrays of a bank, or most bytes of its files, but for one that is partly needed."""
    copies = 2 if settings.storage == "disk" and settings.evict != "oldest" else 1
    return settings.capacity * bytes_per_image(spec) * copies


def checkpoint_bytes(spec: ImageSpec, settings: BankSettings, checkpoints: int, between: int) -> int:
    """Bytes of so many checkpoints of a full bank, to which `between` images are added from one to the next."""
    capacity, is_ring = settings.capacity, settings.evict == "oldest"
    of_image = bank_bytes(spec, settings) // capacity
    if settings.storage == "disk":
        # Links to the bank's files, of which an earlier checkpoint may have some that the bank has dropped. Beside them
        # the number, label and value of the policy of each slot, and its place in a file.
        entries = 2 * (16 if is_ring else 32) * capacity
        return (checkpoints - 1) * min(between, capacity) * of_image + checkpoints * entries
    # Checkpoints share rows: the first has the whole bank, each next one only the new images, a bank at most.
    new = between if is_ring or not between else capacity
    rows = min(checkpoints * capacity, capacity + (checkpoints - 1) * new)
    policy = 0 if settings.policy == "fifo" else 8 * capacity  # a number for each image, copied each time
    return rows * of_image + checkpoints * policy


def _rows(spec: ImageSpec, settings: BankSettings, directory: Path | None) -> BankRows | DiskRows:
    if settings.storage == "ram":
        return BankRows(spec, settings.capacity)
    if directory is None:
        raise DataError("bank.storage: disk needs a directory for its files")
    return DiskRows(spec, settings, directory)


def _as_priorities(priorities: Tensor, count: int) -> Floats:
    values = np.asarray(priorities.detach().cpu().numpy(), dtype=np.float64)
    if values.shape != (count,) or not np.all(np.isfinite(values)) or not np.all(values > 0):
        raise DataError(f"memory bank: priorities must be {count} positive finite numbers")
    return values
