"""The baseline of a run on generated images: what drawn pictures alone, which cost no gradient, teach in short time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import Accelerator

from synthkd.distillation import phases
from synthkd.generators.settings import ProceduralSettings
from synthkd.models import Classifier
from synthkd.pipelines.config import DistillConfig, ProceduralSet
from synthkd.pipelines.student.assembly import assemble
from synthkd.pipelines.student.networks import finished
from synthkd.rng import derive
from synthkd.settings import AdaptSettings, Refine


def baseline_steps(config: DistillConfig) -> int:
    """Steps of the baseline; 0 for a run that has none.

    A run has one if a teacher that may be asked as often as one likes labels the images of a data-free generator, and
    one student of fixed width learns from them.
    """
    generated = config.generated
    if not config.baseline or generated is None or isinstance(generated.generator, ProceduralSettings):
        return 0
    if config.real_images is not None or config.black_box is not None or config.teachers:
        return 0
    return 0 if config.online is not None or config.width is not None else phases.baseline_steps(config.phases)


def of_drawn_pictures(
    config: DistillConfig,
    teacher: Classifier,
    student: Classifier | None,
    images: int,
    accelerator: Accelerator,
    tick: Callable[[int], object],
) -> Classifier:
    """A student with the start and the losses of the run that has learned from drawn pictures alone.

    Args:
        config: of the run, which has a baseline.
        teacher: of the run.
        student: that was given in memory, or None.
        images: of a batch.
        accelerator: device, precision, processes.
        tick: called with the number of images of each step.

    Returns:
        The student in eval mode, on its device.

    Raises:
        SynthkdError: what the steps raise.
    """
    count = baseline_steps(config)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        assembly = assemble(_config(config, count, images), [teacher], accelerator, None, student)
        for step in range(count):
            torch.manual_seed(derive(config.seed, "baseline", step))  # dropout, as in the training loop
            assembly.step(step)
            tick(images)
    return finished(assembly.students[0]).eval()


def _config(config: DistillConfig, count: int, images: int) -> DistillConfig:
    distill = config.distill.model_copy(update={"batch_size": images, "adapt": AdaptSettings()})
    return config.model_copy(
        update={
            "transfer_set": ProceduralSet(kind="procedural"),
            "mix": config.mix.model_copy(update={"logits": "fresh"}),
            "distill": distill,
            "phases": (Refine(kind="refine", steps=count),),
            "extended": (),
            "score": None,
        }
    )
