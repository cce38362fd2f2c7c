"""Passes in chunks give what one pass gives, and no pass is larger than a chunk."""

import torch
from torch import Tensor, nn

from synthkd.passes import features_in_chunks, in_chunks, observe_in_chunks, sample_in_chunks
from synthkd.rng import Rows
from synthkd.taps import evaluating, observe

CPU = torch.device("cpu")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 4))


def test_the_chunks_of_all_inputs_belong_together_and_come_in_order() -> None:
    sizes: list[int] = []

    def run(a: Tensor, b: Tensor) -> Tensor:
        sizes.append(len(a))
        return a * 10 + b

    numbers = torch.arange(7)
    assert in_chunks(run, 3, numbers, numbers).tolist() == [11 * n for n in range(7)]
    assert sizes == [3, 3, 1]


def test_a_tick_ends_a_pass_after_its_chunk() -> None:
    left = iter([True, False])
    assert in_chunks(lambda x: x, 2, torch.arange(9), tick=lambda _: next(left)).tolist() == [0, 1, 2, 3]


def test_each_sample_keeps_its_random_row() -> None:
    def sample(labels: Tensor, rng: Rows) -> Tensor:
        return rng.uniform(len(labels), 2) + labels[:, None]

    labels, rng = torch.arange(5), Rows(1, "test", 3)
    assert torch.equal(sample_in_chunks(sample, 2, labels, rng), sample(labels, rng))


def test_moments_and_features_of_chunks_are_those_of_one_pass() -> None:
    """The last chunk is smaller, so moments that were averaged without weights would be others."""
    model, images = network(), torch.rand(7, 1, 8, 8) * torch.arange(1, 8).view(-1, 1, 1, 1)
    model.train()
    inside = observe_in_chunks(model, images, 3, CPU, ["2"], statistics=True)
    with evaluating(model), torch.no_grad():
        whole = observe(model, images, ["2"], statistics=True)
        again = features_in_chunks(lambda part: observe(model, part, ["2"]), 3, images)
    assert model.training
    for ours, theirs in (
        (inside.logits, whole.logits),
        (inside.features["2"], whole.features["2"]),
        (again["2"], whole.features["2"]),
        (inside.statistics["1"].mean, whole.statistics["1"].mean),
        (inside.statistics["1"].var, whole.statistics["1"].var),
    ):
        torch.testing.assert_close(ours, theirs)
