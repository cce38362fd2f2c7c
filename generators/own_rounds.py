"""Rounds of a generator that each process makes by itself, in place of rounds that all processes share.

As many rounds as there are processes start from one state of the generator, and each process makes one of them without
any exchange. Then all processes get the images of all, and the generator goes on from the mean of the states, as in
federated averaging (McMahan et al. 2017, algorithm 1) and local SGD (Lin et al. 2020).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from synthkd.generators.method_settings import ContinuousSettings
from synthkd.generators.settings import GeneratorSettings, InversionSettings
from synthkd.processes import Processes
from synthkd.types import Round, TrainableGenerator

AVERAGED = (InversionSettings, ContinuousSettings)
"""Settings of the generators whose whole state is weights and moments; the mean of images would be none."""


def averages(settings: GeneratorSettings) -> bool:
    """Whether the mean of several states of such a generator is a state of it."""
    return isinstance(settings, AVERAGED)


class OwnRounds:
    """The rounds of a generator, of which each process makes one at a time.

    The first round of each group of `processes.world` makes the whole group; the others have their images from then on.
    So their images are of a student that is as many rounds older.

    Args:
        generator: its rounds exchange nothing, and `averages` holds for its settings.
        processes: that make the rounds.
    """

    def __init__(self, generator: TrainableGenerator, processes: Processes) -> None:
        self._generator = generator
        self._processes = processes
        self._made: dict[int, Round] = {}

    def round(self, index: int, difficulty: float, student: nn.Module | None = None) -> Round:
        """Round `index`, see `TrainableGenerator.round`; made together with the rounds after it, or by an earlier call.

        Raises:
            SynthkdError: as the generator's round.
        """
        if index not in self._made:
            self._made = self._group(index, difficulty, student)
        return self._made.pop(index)

    def _group(self, first: int, difficulty: float, student: nn.Module | None) -> dict[int, Round]:
        """The rounds from `first` on, one of each process, by number; the generator then has the mean of the states."""
        own = self._generator.round(first + self._processes.rank, difficulty, student)
        self._generator.load_state_dict(self._processes.mean(self._generator.state_dict()))
        # Their number is that of the round's terms, the same in every process.
        values = torch.tensor(list(own.terms.values()), dtype=torch.float64)
        images, labels, logits, terms = (
            self._processes.every(value) for value in (own.images, own.labels, own.teacher_logits, values)
        )
        return {
            first + place: Round(
                images[place], labels[place], logits[place], dict(zip(own.terms, terms[place].tolist(), strict=True))
            )
            for place in range(self._processes.world)
        }

    def state_dict(self) -> dict[str, Any]:
        """The rounds that were made ahead, by their numbers. The generator has a state of its own."""
        return {
            str(index): {
                "images": one.images.cpu(),
                "labels": one.labels.cpu(),
                "teacher_logits": one.teacher_logits.cpu(),
                "terms": dict(one.terms),
            }
            for index, one in self._made.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        device = self._processes.device
        self._made = {
            int(index): Round(
                one["images"].to(device), one["labels"].to(device), one["teacher_logits"].to(device), one["terms"]
            )
            for index, one in state.items()
        }
