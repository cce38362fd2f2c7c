"""The memory that the training of a teacher needs, told from steps on a few images before it starts."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from accelerate import Accelerator

from synthkd.data.read.real import Splits
from synthkd.models import Classifier
from synthkd.pipelines.config import TeachConfig
from synthkd.pipelines.run.memory import Memory, memory_of, taken_bytes
from synthkd.pipelines.teacher.learning import noise, pass_size, plain_step, private_learner
from synthkd.privacy.journal import Journal
from synthkd.training.learner import Learner
from synthkd.training.memory import TRIED, need_of

BATCHES = 2
"""Copies of a batch, in float32, beside a step: as it was drawn, and augmented."""


def teaching_memory(config: TeachConfig, splits: Splits, model: Classifier, accelerator: Accelerator) -> Memory:
    """The memory that the training will need: what is taken now, and two steps of a copy of the model beside it.

    Args:
        config: of the training.
        splits: its images.
        model: untrained; stays as it is.
        accelerator: the device.

    Raises:
        TrainingError: a step fails on noise.
    """
    device = accelerator.device
    taken = taken_bytes(device)

    def prepare(count: int) -> Callable[[], None]:
        batch, copied = noise(config, model.spec, count).to(device), copy.deepcopy(model).to(device)
        if config.training.dp is None:
            learner = Learner("teacher", copied, config.training.optimizer, config.training.steps, accelerator)
            return lambda: _twice(lambda step: plain_step(learner, batch, accelerator, step))
        private = private_learner(config, copied, splits, device, Journal(None))
        return lambda: _twice(lambda step: private.update(lambda: batch, F.cross_entropy, step))

    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        images = min(pass_size(config), config.training.batch_size)
        prepare(min(TRIED))()  # the first step of all has operations of its own
        need = need_of(prepare, -(-images // accelerator.num_processes), device)
    key = "training.batch_size" if config.training.dp is None else "training.dp.physical_batch"
    batch_bytes = BATCHES * 4 * math.prod(model.spec.shape) * config.training.batch_size
    return memory_of(device, taken, [(key, need)], {"training.batch_size": batch_bytes})


def _twice(step: Callable[[int], object]) -> None:
    """Take two steps: the first makes the moments of the optimizer, beside which the second needs its memory."""
    step(0)
    step(1)
