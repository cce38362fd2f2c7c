import math

import pytest
import torch

from synthkd.metrics.quality import BINS, Quality, QualityCounter


def counted(logits: torch.Tensor, labels: torch.Tensor, size: int = 1000) -> Quality:
    counter = QualityCounter(logits.shape[1])
    for first in range(0, len(labels), size):
        counter.add(logits[first : first + size], labels[first : first + size])
    return counter.result()


def drawn(classes: int = 7, n: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return 2 * torch.randn(n, classes, generator=rng), torch.randint(classes, (n,), generator=rng)


def test_counts_agree_with_a_slow_oracle_whatever_the_batches() -> None:
    logits, labels = drawn()
    one, other = counted(logits, labels), counted(logits, labels, size=37)
    assert (one.top1, one.top5, one.per_class, one.confusions) == (
        other.top1,
        other.top5,
        other.per_class,
        other.confusions,
    )
    assert (one.nll, one.ece) == pytest.approx((other.nll, other.ece), rel=1e-12)
    p = logits.double().softmax(1)
    order = logits.argsort(dim=1, descending=True).tolist()
    right = [row[0] == label for row, label in zip(order, labels.tolist(), strict=True)]
    assert one.top1.value == sum(right) / 300
    assert one.top5 is not None
    assert one.top5.value == sum(label in row[:5] for row, label in zip(order, labels.tolist(), strict=True)) / 300
    losses = [-math.log(row[label]) for row, label in zip(p.tolist(), labels.tolist(), strict=True)]
    assert one.nll == pytest.approx(sum(losses) / 300, rel=1e-12)
    error = torch.tensor(losses, dtype=torch.float64).std().item() / math.sqrt(300)
    assert one.nll_interval == pytest.approx((one.nll - 1.959964 * error, one.nll + 1.959964 * error), rel=1e-6)
    ece, sure = 0.0, p.max(1).values.tolist()
    for m in range(BINS):
        inside = [i for i in range(300) if m / BINS < sure[i] <= (m + 1) / BINS]
        ece += abs(sum(sure[i] for i in inside) - sum(right[i] for i in inside)) / 300
    assert one.ece == pytest.approx(ece, rel=1e-12)
    assert sum(one.n for one in one.bins) == 300
    assert sum(one.count for one in one.confusions) == 300 - sum(right)
    worst = one.confusions[0]
    taken = [
        row[0] == worst.predicted for row, label in zip(order, labels.tolist(), strict=True) if label == worst.label
    ]
    assert (sum(taken), len(taken)) == (worst.count, worst.of)


def test_closed_forms_of_perfect_uniform_and_sure_classifiers() -> None:
    labels = torch.arange(6).repeat(5)
    perfect = counted(1000.0 * torch.eye(6)[labels], labels)
    assert (perfect.top1.value, perfect.nll, perfect.ece, perfect.confusions) == (1.0, 0.0, 0.0, ())
    uniform = counted(torch.zeros(30, 6), labels)
    assert uniform.nll == pytest.approx(math.log(6), rel=1e-12)
    assert uniform.confidence == pytest.approx(1 / 6, rel=1e-12)
    assert uniform.ece == pytest.approx(0.0, abs=1e-12), "it is right for one class in six, and as sure as that"
    wrong = counted(1000.0 * torch.eye(6)[(labels + 1) % 6], labels)
    assert (wrong.top1.value, wrong.ece) == (0.0, 1.0)


def test_few_classes_have_no_top_5_and_a_class_without_images_no_accuracy() -> None:
    logits, _ = drawn(classes=4, n=3)
    quality = counted(logits, torch.zeros(3, dtype=torch.int64))
    assert quality.top5 is None
    assert [one is None for one in quality.per_class] == [False, True, True, True]
    assert counted(logits[:1], torch.zeros(1, dtype=torch.int64)).nll_interval is None
