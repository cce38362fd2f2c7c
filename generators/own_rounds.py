"""Rounds of a generator that each process makes by itself, in place of rounds that all processes share.

As many rounds as there are processes start from one state of the generator, and each process makes one of them without
any exchange. Then all processes get the images of all, and the generator goes on from the mean of the states, as in
federated averaging (McMahan et al. 2017, algorithm 1) and local SGD (Lin et al. 2020).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from synthkd.generators.method_settings import ContinuousSettings
from synthkd.generators.settings import GeneratorSettings, InversionSettings
from synthkd.processes import CPU, ONE_PROCESS, Processes
from synthkd.types import Round, TrainableGenerator

AVERAGED = (InversionSettings, ContinuousSettings)
"""Settings of the generators whose whole state is weights and moments; the mean of images would be none."""


def averages(settings: GeneratorSettings) -> bool:
    """Whether the mean of several states of such a generator is a state of it."""
    return isinstance(settings, AVERAGED)


def of_a_round(accelerator: Accelerator, rounds_at_once: int) -> Processes:
    """The processes that share a round: all of them, or this one alone where each makes rounds of its own.

    Args:
        accelerator: of the run.
        rounds_at_once: number of rounds that start from one state of the generator.
    """
    return Processes.of(accelerator) if rounds_at_once == 1 else ONE_PROCESS


class OwnRounds:
    """The rounds of a generator, of which each process makes one at a time.

    The first round of each group of `processes.world` makes the whole group; the others have their images from then on,
    in memory. So their images are of a student that is as many rounds older. Rounds that were made before there was a
    student are left out once there is one, and a new group is made.

    Args:
        generator: its rounds exchange nothing, and `averages` holds for its settings.
        processes: that make the rounds.
    """

    def __init__(self, generator: TrainableGenerator, processes: Processes) -> None:
        self._generator = generator
        self._processes = processes
        self._ahead: dict[int, Round] = {}
        self._has_student = False  # whether those were made against one

    def round(self, index: int, difficulty: float, student: nn.Module | None = None) -> Round:
        """Round `index`, see `TrainableGenerator.round`; made together with the rounds after it, or by an earlier call.

        Raises:
            SynthkdError: as the generator's round.
        """
        if index not in self._ahead or self._has_student != (student is not None):
            self._ahead, self._has_student = self._group(index, difficulty, student), student is not None
        return _on(self._ahead.pop(index), self._processes.device)

    def _group(self, first: int, difficulty: float, student: nn.Module | None) -> dict[int, Round]:
        """The rounds from `first` on, one of each process, by number; the generator then has the mean of the states."""
        own = self._generator.round(first + self._processes.rank, difficulty, student)
        self._generator.load_state_dict(self._processes.mean(self._generator.state_dict()))
        # Their number is that of the round's terms, the same in every process.
        values = torch.tensor(list(own.terms.values()), dtype=torch.float64)
        images, labels, logits, terms = (
            self._processes.every(value) for value in (own.images, own.labels, own.teacher_logits, values)
        )
        rounds = {}
        for place in range(self._processes.world):
            named = dict(zip(own.terms, terms[place].tolist(), strict=True))
            one = Round(images[place].clone(), labels[place].clone(), logits[place].clone(), named)
            rounds[first + place] = _on(one, CPU)  # the device needs its memory for the steps
        return rounds

    def state_dict(self) -> dict[str, Any]:
        """The rounds that were made ahead, by their numbers. The generator has a state of its own."""
        rounds = {str(index): {**vars(one), "terms": dict(one.terms)} for index, one in self._ahead.items()}
        return {"rounds": rounds, "has_student": self._has_student}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._ahead = {int(index): Round(**one) for index, one in state["rounds"].items()}
        self._has_student = state["has_student"]


def _on(one: Round, device: torch.device) -> Round:
    images, labels, logits = (value.to(device) for value in (one.images, one.labels, one.teacher_logits))
    return Round(images, labels, logits, one.terms)
