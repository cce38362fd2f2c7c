"""Parts of a caller's own in a hybrid dataset, torch's DataLoader around it, and a memory bank as a dataset."""

import os
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, get_worker_info

from synthkd.data import HybridDataset, MemoryBank
from synthkd.data.own import as_source
from synthkd.errors import ConfigError, DataError
from synthkd.settings import BankSettings, Curve, MixSettings
from synthkd.types import Batch, ImageSpec

SPEC = ImageSpec(1, 4, 4, 3)
OLD, NEW, REAL, FRESH = 0.2, 0.4, 1.0, 0.6
"""Grey levels that tell where an image came from; all are exact in 8 bits."""


def grey(count: int, level: float) -> Tensor:
    return torch.full((count, *SPEC.shape), level)


def levels(batch: Batch) -> list[float]:
    return [round(float(x), 1) for x in batch.images.mean((1, 2, 3))]


def bank_of(count: int, level: float) -> MemoryBank:
    bank = MemoryBank(SPEC, BankSettings(capacity=8))
    bank.add(grey(count, level), torch.arange(count) % 3, torch.zeros(count, 3))
    return bank


class Decoding(Dataset[tuple[Tensor, int]]):
    """Images whose level is that of real ones where a worker decodes them, and 0 in the main process."""

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full(SPEC.shape, REAL if get_worker_info() is not None else 0.0), index % 3


class Teacher(nn.Module):
    """A module with BatchNorm, whose answers and statistics would change in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(images.flatten(1)))
        return logits


def real(count: int = 9) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.rand(count, *SPEC.shape, generator=generator), torch.arange(count) % 3)


# The loader


def test_images_that_are_added_while_a_loader_runs_are_in_the_next_batch() -> None:
    bank = bank_of(4, OLD)
    hybrid = HybridDataset([bank, Decoding()], [0.5, None], batch_size=32, total=6, workers=2)
    drawn = []
    for number, batch in enumerate(DataLoader(hybrid, batch_size=None)):
        drawn.append(set(levels(batch)))
        if number == 2:
            bank.add(grey(8, NEW), torch.arange(8) % 3, torch.zeros(8, 3))
    assert drawn == [{OLD, REAL}] * 3 + [{NEW, REAL}] * 3


def test_real_images_are_decoded_in_workers_and_generated_ones_in_the_main_process() -> None:
    processes = []

    def generate(count: int) -> Tensor:
        processes.append(os.getpid())
        return grey(count, FRESH)

    hybrid = HybridDataset([generate, Decoding()], [0.25, None], batch_size=8, total=3, teacher=Teacher(), workers=2)
    assert [levels(batch) for batch in hybrid] == [[FRESH] * 2 + [REAL] * 6] * 3
    assert processes == [os.getpid()] * 3
    assert levels(hybrid.batch(0)) == [FRESH] * 2 + [0.0] * 6, "one batch by itself is decoded where it is asked for"


def test_the_number_of_workers_changes_no_batch() -> None:
    def batches(workers: int) -> list[Batch]:
        parts = [bank_of(8, OLD), real(), real(20)]
        shares = [0.25, Curve(kind="step", start=0.0, end=0.5, until=0.5), None]
        mix = MixSettings(mixup=0.5, flip=True)
        return list(HybridDataset(parts, shares, mix, 12, 5, Teacher().eval(), workers=workers))

    torch.manual_seed(3)
    alone = batches(0)
    torch.manual_seed(3)
    for one, other in zip(alone, batches(2), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert one.rows is not None
        assert other.rows is not None
        assert torch.equal(one.rows, other.rows)


def test_a_pass_gives_each_step_and_the_next_goes_on() -> None:
    def hybrid() -> HybridDataset:
        return HybridDataset([real(50)], [None], batch_size=4, total=3, seed=5)

    source, steps = hybrid(), hybrid()
    assert len(source) == len(DataLoader(source, batch_size=None)) == 3
    loader = DataLoader(source, batch_size=None)
    for number, batch in enumerate([*loader, *loader]):
        assert torch.equal(batch.images, steps.batch(number).images)
    assert not torch.equal(steps.batch(0).images, steps.batch(3).images)


def test_a_loop_that_is_resumed_goes_on_with_the_next_pass() -> None:
    def hybrid() -> HybridDataset:
        return HybridDataset([real(50)], [None], batch_size=4, total=3, seed=5)

    source, resumed = hybrid(), hybrid()
    for _ in source:
        pass
    state = source.state_dict()
    resumed.load_state_dict(state)
    for ours, theirs in zip(resumed, source, strict=True):
        assert torch.equal(ours.images, theirs.images)
    del state["passes"]  # as of an earlier version
    resumed.load_state_dict(state)
    assert torch.equal(next(iter(resumed)).images, source.batch(0).images)


def test_a_pass_that_is_left_early_is_over() -> None:
    hybrid = HybridDataset([real(50)], [None], batch_size=4, total=100, workers=2)
    left, again = next(iter(hybrid)), next(iter(DataLoader(hybrid, batch_size=None)))
    assert torch.equal(left.images, hybrid.batch(0).images)
    assert torch.equal(again.images, hybrid.batch(100).images)


def test_a_worker_of_the_loader_is_refused_with_the_remedy() -> None:
    hybrid = HybridDataset([bank_of(4, OLD)], [None], batch_size=4, total=2)
    with pytest.raises(ConfigError, match="leave num_workers of the DataLoader at 0, and set workers"):
        next(iter(DataLoader(hybrid, batch_size=None, num_workers=1)))


def test_iterating_leaves_the_random_state_of_the_caller() -> None:
    before = torch.random.get_rng_state()
    hybrid = HybridDataset([lambda count: torch.rand(count, *SPEC.shape), real()], [0.5, None], batch_size=4, total=2)
    list(hybrid)
    assert torch.equal(torch.random.get_rng_state(), before)


# The teacher


def test_a_module_labels_in_eval_mode_without_gradient_and_stays_as_it_was() -> None:
    teacher = Teacher()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    batch = HybridDataset([real()], [None], batch_size=6, teacher=teacher).batch(0)
    assert teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert batch.teacher_logits is not None
    assert not batch.teacher_logits.requires_grad
    assert torch.equal(batch.teacher_logits, teacher.eval()(batch.images))


def test_without_labels_the_teacher_gives_them_and_none_counts_as_annotated() -> None:
    images = [torch.rand(SPEC.shape) for _ in range(5)]
    unlabelled: Any = images
    hybrid = HybridDataset([lambda count: grey(count, FRESH), unlabelled], [0.5, None], batch_size=8, teacher=Teacher())
    batch = hybrid.batch(0)
    assert batch.teacher_logits is not None
    assert torch.equal(batch.labels, batch.teacher_logits.argmax(1))
    assert batch.annotated is not None
    assert not batch.annotated.any()


# Sources


def test_a_function_gives_labels_or_not_and_follows_from_seed_and_step() -> None:
    def generate(count: int) -> tuple[Tensor, Tensor]:
        return torch.rand(count, *SPEC.shape), torch.full((count,), 2)

    first, again = (HybridDataset([generate], [None], batch_size=3, seed=1) for _ in range(2))
    again.batch(0)
    assert torch.equal(first.batch(4).images, again.batch(4).images)
    assert not torch.equal(first.batch(4).images, first.batch(5).images)
    assert first.batch(0).labels.tolist() == [2, 2, 2]


def test_a_network_generates_although_it_has_a_length_and_items() -> None:
    class Constant(nn.Sequential):
        def forward(self, count: int) -> Tensor:
            return grey(count, FRESH)

    batch = HybridDataset([Constant(nn.Identity())], [None], batch_size=2).batch(0)
    assert levels(batch) == [FRESH] * 2


def test_rows_are_indices_and_labelled_samples_are_annotated() -> None:
    data = real(7)
    batch = HybridDataset([data], [None], batch_size=20).batch(3)
    assert batch.rows is not None
    images, labels = data.tensors
    assert torch.equal(batch.images, images[batch.rows])
    assert torch.equal(batch.labels, labels[batch.rows])
    assert batch.annotated is not None
    assert batch.annotated.all()


PIXELS = np.array([[0, 51], [102, 255]], dtype=np.uint8)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(PIXELS),
        PIXELS,
        PIXELS[:, :, None],
        torch.from_numpy(PIXELS)[None],
        torch.from_numpy(PIXELS / 255),
    ],
    ids=["PIL", "array", "array with a channel", "uint8 tensor", "float tensor"],
)
def test_an_image_may_have_any_usual_form(image: object) -> None:
    samples: Any = [(image, torch.tensor(1), "more")]
    batch = HybridDataset([samples], [None], batch_size=2).batch(0)
    expected = torch.tensor([[[0.0, 0.2], [0.4, 1.0]]]).expand(2, -1, -1, -1)
    torch.testing.assert_close(batch.images, expected)
    assert batch.labels.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([(torch.randn(1, 4, 4), 0)], r"in \[0, 1\], got .*put synthkd\.models\.Normalize in front"),
        ([(torch.rand(1, 4, 4), 0), (torch.rand(1, 4, 5), 0)], r"one size, got \[\(1, 4, 4\), \(1, 4, 5\)\]; resize"),
        ([{"image": torch.rand(1, 4, 4), "label": 0}], r"a sample must be \(image, label\).*got dict"),
        ([(torch.rand(1, 4, 4), "cat")], r"a sample must be \(image, label\)"),
        ([(torch.rand(1, 4, 4),)], r"a sample must be \(image, label\)"),
        ([], "must have an image"),
        (5, "a source of images must be a MemoryBank, a map-style dataset, or a function of a count, got a int"),
    ],
)
def test_what_is_no_source_is_an_error_that_says_what_is_one(samples: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        HybridDataset([samples], [None], batch_size=8).batch(0)


@pytest.mark.parametrize("wrong", [lambda n: grey(n + 1, 0.0), lambda n: (grey(n, 0.0), torch.zeros(1))])
def test_a_function_must_give_what_it_is_told_to(wrong: Any) -> None:
    with pytest.raises(DataError, match=r"the generator gave \d images and \d labels for a count of 3"):
        as_source(wrong, 0).draw(3, 0)


# The bank as a dataset


def test_a_bank_is_a_dataset_with_the_oldest_image_first() -> None:
    bank = MemoryBank(SPEC, BankSettings(capacity=4))
    with pytest.raises(IndexError):
        bank[0]
    for number in range(6):
        bank.add(grey(1, number / 255), torch.tensor([number % 3]), torch.full((1, 3), float(number)))
    assert [round(float(image.mean()) * 255) for image, _, _ in bank] == [2, 3, 4, 5]
    assert [int(label) for _, label, _ in bank] == [2, 0, 1, 2]
    newest = bank[-1]
    assert newest.teacher_logits.tolist() == [5.0, 5.0, 5.0]
    with pytest.raises(IndexError):
        bank[4]
    bank.add(grey(4, 0.0), torch.zeros(4, dtype=torch.int64), torch.zeros(4, 3))
    assert newest.teacher_logits.tolist() == [5.0, 5.0, 5.0], "a sample is no view of the bank"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_makes_batches_of_a_bank(workers: int) -> None:
    bank = bank_of(6, OLD)
    (batch,) = DataLoader(bank, batch_size=6, num_workers=workers)
    assert batch.image.shape == (6, *SPEC.shape)
    assert batch.label.tolist() == [0, 1, 2, 0, 1, 2]
    images, labels, logits = batch
    assert (len(images), len(labels), logits.shape) == (6, 6, (6, 3))
