"""Each alarm is raised by what it is for, and stays silent otherwise."""

import pytest
import torch

from synthkd.distillation import alarms
from synthkd.metrics.utility import proportion
from synthkd.types import BatchNormStatistics


def one_hot(labels: torch.Tensor, classes: int = 4) -> torch.Tensor:
    return torch.nn.functional.one_hot(labels, classes).float()


DO = "do this"


def test_class_imbalance() -> None:
    balanced = torch.arange(400) % 4
    assert alarms.class_imbalance(one_hot(balanced), DO) is None
    skewed = balanced.clone()
    skewed[skewed == 2] = 1
    skewed[:10] = 2
    alarm = alarms.class_imbalance(one_hot(skewed), DO)
    assert alarm is not None
    assert "class 2 has 10%" in alarm.message
    assert alarms.class_imbalance(one_hot(skewed[:40]), DO) is None, "too few images to say"
    skewed[skewed == 3] = 0
    alarm = alarms.class_imbalance(one_hot(skewed), DO)
    assert alarm is not None
    assert "classes 3 and 2 have 0% to 10% of an equal share of the images: do this" in alarm.message
    alarm = alarms.class_imbalance(one_hot(torch.arange(400) % 8, 20), DO)
    assert alarm is not None
    assert "classes 8, 9, 10, 11, 12, 13, 14, 15, 16, 17 and 2 more have 0% to 0%" in alarm.message


def test_near_chance() -> None:
    def raised(hits: int, n: int, classes: int) -> bool:
        return alarms.near_chance(proportion(hits, n), classes, "the teacher is", DO) is not None

    assert [raised(hits, 10_000, 10) for hits in (0, 1000, 1100, 1440, 1460, 9000)] == [True] * 4 + [False] * 2
    assert raised(20, 100, 10) is False, "0.133 to 0.289 is above chance"
    assert raised(15, 100, 10) is True, "0.093 to 0.233 contains 0.1"
    assert [raised(hits, 1000, 2) for hits in (500, 620, 630)] == [True, True, False], "two classes: chance is one half"
    assert raised(2, 10, 10) is False, "too few images to say"
    alarm = alarms.near_chance(proportion(1020, 10_000), 10, "the teacher is", DO)
    assert alarm is not None
    assert alarm.message == "the teacher is right on 10.2% of 10,000 test images, where chance is 10.0%: do this"


def test_collapse() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 4
    centres = 3 * torch.randn(4, 32, generator=generator)
    noise = torch.randn(200, 32, generator=generator)
    assert alarms.collapse(centres[labels] + 3 * noise, labels, DO) is None
    alarm = alarms.collapse(centres[labels] + 0.1 * noise, labels, DO)
    assert alarm is not None
    assert alarm.value > 0.95
    assert DO in alarm.message
    assert alarms.collapse(centres[labels] + 0.1 * noise, labels, DO, real=0.99) is not None
    assert alarms.collapse(centres[labels] + 0.3 * noise, labels, DO, real=0.99) is None, "as alike as real images"


def test_collapse_of_single_images_is_not_measured() -> None:
    assert alarms.collapse(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4), DO) is None


def test_pairs_of_many_classes_are_judged_together() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(1024) % 700  # two images of 324 classes
    features = torch.randn(1024, 4, generator=generator)
    assert max(alarms.similarity_within_classes(features, labels)) > 0.95, "one pair is alike by chance"
    assert alarms.collapse(features, labels, DO) is None
    copies = features[labels] + 0.1 * torch.randn(1024, 4, generator=generator)
    assert alarms.collapse(copies, labels, DO) is not None
    # classes of two images do not hide, and do not decide, where a class has enough
    features[:6], labels[:6] = features[0], 2000
    assert alarms.largest_similarity(features, labels) == pytest.approx(1.0)
    features[:6] = torch.randn(6, 4, generator=generator)
    assert alarms.collapse(features, labels, DO) is None


def test_of_a_thousand_classes_the_number_of_those_that_the_teacher_sees_is_judged() -> None:
    logits = torch.zeros(1024, 1000)
    logits[torch.arange(1024), torch.randint(1000, (1024,), generator=torch.Generator().manual_seed(0))] = 1.0
    assert alarms.class_imbalance(logits, DO) is None
    few = logits[:, torch.arange(1000) % 150]
    few[:, 150:] = 0.0
    alarm = alarms.class_imbalance(few[few.sum(1) > 0][:700].repeat(7, 1)[:1024], DO)
    assert alarm is not None
    assert alarm.message.endswith(f"classes in 1,024 images, of which an equal share would have about 641: {DO}")
    assert len(alarm.message) < 150
    assert alarms.class_imbalance(logits[:99, :], DO) is None


def test_statistics_gap() -> None:
    zeros, ones = torch.zeros(8), torch.ones(8)
    assert alarms.statistics_gap({}, DO) is None
    assert alarms.statistics_gap({"a": BatchNormStatistics(zeros + 0.2, ones, zeros, ones)}, DO) is None
    alarm = alarms.statistics_gap({"a": BatchNormStatistics(zeros + 2.0, ones, zeros, ones * 4)}, DO)
    assert alarm is not None
    assert abs(alarm.value - 1.0) < 1e-3


def test_stale_student() -> None:
    rising = [0.1 + 0.8 * i / 99 for i in range(100)]
    assert alarms.stale_student(rising) is None
    assert alarms.stale_student([0.1] * 5) is None, "too short to say"
    assert alarms.stale_student([0.5 + 0.4 * (i % 2) for i in range(100)]) is None, "noise is no trend"
    assert alarms.stale_student([0.8] * 100 + [0.7]) is None, "one bad round is no trend"
    assert alarms.stale_student([0.1] * 40) is not None, "it never learned"
    fallen = [0.3] * 10 + [0.9] * 50 + [0.32] * 40
    alarm = alarms.stale_student(fallen)
    assert alarm is not None
    assert "below its best" in alarm.message
    lost = alarms.stale_student([0.9] * 40 + [0.4] * 40)
    assert lost is not None
    assert "0.50 below its best and 0.50 below its start" in lost.message


def test_a_stale_student_is_told_which_way_its_learning_rate_should_go() -> None:
    low = [0.2] * 40

    def remedy(losses: list[float]) -> str:
        alarm = alarms.stale_student(low, losses)
        assert alarm is not None
        return alarm.message.partition("start: ")[2]

    slow = [7.0 - 0.1 * i for i in range(40)]
    assert remedy(slow).startswith("train longer or raise distill.optimizer.lr")
    assert remedy([2.0] * 40).startswith("lower distill.optimizer.lr"), "it never fell"
    assert remedy([2.0] * 10 + [0.5] * 10 + [1.5] * 20).startswith("lower distill.optimizer.lr"), "it rose again"
    assert remedy(slow[::-1]).startswith("lower distill.optimizer.lr")
    assert remedy([]).startswith("change distill.optimizer.lr"), "nobody knows which way"
