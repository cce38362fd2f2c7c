"""Rounds of the generator: what they put into the bank, and how the student is asked about them."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from synthkd.data.bank import MemoryBank
from synthkd.distillation.synthesis import Synthesis
from synthkd.rng import Rows
from synthkd.schedules import DifficultyScheduler
from synthkd.settings import BankSettings, DifficultySettings
from synthkd.types import ImageSpec, Round, to_uint8

SPEC = ImageSpec(1, 2, 2, 4)
TEACHER = torch.tensor([0, 1, 2, 3, 0])
"""What the teacher answers to the images of a round."""
ASKED = torch.tensor([0, 1, 2, 0, 1])
"""The labels they were made for: three of five are met."""


class Generator:
    """Makes five images a round, of a grey level that tells the round, and notes how it was called."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, float, nn.Module | None]] = []

    def round(self, index: int, difficulty: float, student: nn.Module | None = None) -> Round:
        self.calls.append((index, difficulty, student))
        images = torch.full((5, *SPEC.shape), index / 255)
        return Round(images, ASKED, torch.eye(4)[TEACHER], {"generator/loss": float(index)})

    def sample(self, labels: Tensor, difficulty: float, rng: Rows) -> Tensor:
        raise AssertionError("a round asks for no further images")

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Student(nn.Module):
    """Gives the answers it was told, and notes the mode and the images of each question."""

    def __init__(self, answers: list[int]) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.frozen = nn.Dropout()
        self.frozen.eval()
        self.answers = torch.tensor(answers)
        self.asked: list[tuple[bool, bool, int]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.asked.append((self.training, torch.is_grad_enabled(), round(float(images.mean()) * 255)))
        logits: Tensor = torch.eye(4)[self.answers] + 0 * self.norm(images).sum()
        return logits


class Parts:
    """A synthesis with a difficulty of 0.4, doubled above an agreement of 0.8 and halved below 0.4."""

    def __init__(self, answers: list[int]) -> None:
        self.generator = Generator()
        self.bank = MemoryBank(SPEC, BankSettings(capacity=8), 0)
        settings = DifficultySettings(start=0.4, up=2.0, down=0.5, raise_above=0.8, lower_below=0.4)
        self.difficulty = DifficultyScheduler(settings)
        self.student = Student(answers)
        self.synthesis = Synthesis(self.generator, self.bank, self.difficulty, lambda: self.student)


def test_a_round_alone_fills_the_bank_and_asks_no_student() -> None:
    parts = Parts(TEACHER.tolist())
    logged = parts.synthesis.alone(3, keep=True)
    assert parts.generator.calls == [(3, 0.4, None)]
    assert logged == {"generator/loss": 3.0, "difficulty": 0.4, "bank/size": 5.0}
    stored = parts.bank.newest(9)
    assert to_uint8(stored.images).unique().tolist() == [3]
    assert stored.labels.tolist() == ASKED.tolist()
    assert stored.teacher_logits is not None
    assert stored.teacher_logits.argmax(1).tolist() == TEACHER.tolist()
    assert parts.student.asked == []


def test_a_round_that_is_not_kept_trains_the_generator_and_adds_nothing() -> None:
    parts = Parts(TEACHER.tolist())
    logged = parts.synthesis.alone(0, keep=False)
    assert len(parts.generator.calls) == 1
    assert (len(parts.bank), parts.bank.added, logged["bank/size"]) == (0, 0, 0.0)


@pytest.mark.parametrize(
    ("answers", "agreement", "difficulty"),
    [([0, 1, 2, 3, 0], 1.0, 0.8), ([0, 1, 2, 0, 1], 0.6, 0.4), ([0, 0, 0, 0, 1], 0.2, 0.2)],
)
def test_agreement_on_fresh_images_moves_the_difficulty_of_the_next_round(
    answers: list[int], agreement: float, difficulty: float
) -> None:
    parts = Parts(answers)
    logged = parts.synthesis.beside_student(7)
    assert logged == pytest.approx(
        {
            "generator/loss": 7.0,
            "difficulty": difficulty,
            "fresh/agreement": agreement,
            "generator/asked_label": 0.6,
            "bank/size": 5.0,
        }
    )
    parts.synthesis.beside_student(8)
    assert [call[:2] for call in parts.generator.calls] == [(7, 0.4), (8, pytest.approx(difficulty))]


def test_the_student_goes_to_the_generator_and_its_images_to_the_bank() -> None:
    parts = Parts(TEACHER.tolist())
    parts.synthesis.beside_student(1)
    first, parts.student = parts.student, Student(TEACHER.tolist())
    parts.synthesis.beside_student(2)
    assert [call[2] for call in parts.generator.calls] == [first, parts.student], "the student of the moment"
    assert (parts.bank.added, len(parts.bank)) == (10, 8)
    assert to_uint8(parts.bank.newest(5).images).unique().tolist() == [2]


def test_the_student_is_asked_in_eval_mode_and_left_as_it_was() -> None:
    parts = Parts(TEACHER.tolist())
    parts.student.train()
    parts.student.frozen.eval()
    parts.synthesis.beside_student(6)
    assert parts.student.asked == [(False, False, 6)], "without gradient, on the images of this round"
    assert (parts.student.training, parts.student.norm.training, parts.student.frozen.training) == (True, True, False)
    assert parts.student.norm.num_batches_tracked == 0, "no moments are taken from the question"
