"""The baseline of a run on generated images: what drawn pictures alone, which cost no gradient, teach in short time."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from synthkd.distillation import phases
from synthkd.errors import SynthkdError
from synthkd.generators.settings import ProceduralSettings
from synthkd.models import Classifier
from synthkd.pipelines.config import DistillConfig, ProceduralSet
from synthkd.pipelines.run.device import make_accelerator
from synthkd.pipelines.student.assembly import Assembly, assemble
from synthkd.pipelines.student.networks import finished
from synthkd.rng import derive
from synthkd.settings import ContrastTerm, Refine
from synthkd.training.measuring import Watch


def has_baseline(config: DistillConfig) -> bool:
    """Whether a run of enough steps has a baseline.

    It has one if a teacher that may be asked as often as one likes labels the images of a data-free generator, and one
    student of fixed width learns from them, by losses that no controller moves and that need no bank. An extended run
    keeps the baseline that it had before.
    """
    generated, adapt = config.generated, config.distill.adapt
    if not config.baseline or config.extended or config.teachers:
        return False
    if generated is None or isinstance(generated.generator, ProceduralSettings) or config.real_images is not None:
        return False
    if any(isinstance(term, ContrastTerm) for term in config.distill.transfer):
        return False
    others = (config.black_box, config.online, config.width, adapt.temperature, adapt.weights, adapt.strength)
    return all(one is None for one in others)


def baseline_steps(config: DistillConfig) -> int:
    """Steps of the baseline of a run; 0 without one."""
    return phases.baseline_steps(config.phases) if has_baseline(config) else 0


@dataclass(frozen=True)
class Drawn:
    """A student with the start and the losses of a run that has learned from drawn pictures alone.

    Attributes:
        network: in eval mode, on its device; None where a run has no baseline, or it failed.
        failure: why it failed; empty if it did not.
    """

    network: Classifier | None = None
    failure: str = ""


def of_drawn_pictures(assembly: Assembly, watch: Watch) -> Drawn:
    """Train the baseline of a finished run, if it has one. A failure costs the run nothing but the baseline.

    Args:
        assembly: of the run, which is left as it is.
        watch: of the measurement.
    """
    config, size, team = assembly.config, assembly.batch.images, assembly.team
    count = baseline_steps(config)
    if not count or team is None:
        return Drawn()
    tick = watch("a student of drawn pictures learns", count * size)
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            own = make_accelerator(config)  # which knows no optimizer of the run
            parts = assemble(_config(config, count, size), team.models[:1], own, None, assembly.given)
            for step in range(count):
                torch.manual_seed(derive(config.seed, "baseline", step))  # dropout, as in the training loop
                parts.step(step)
                tick(size)
    except (SynthkdError, torch.OutOfMemoryError) as error:
        return Drawn(failure=str(error).partition("\n")[0])
    return Drawn(finished(parts.students[0]).eval())


def _config(config: DistillConfig, count: int, images: int) -> DistillConfig:
    distill = config.distill.model_copy(update={"batch_size": images})
    return config.model_copy(
        update={
            "transfer_set": ProceduralSet(kind="procedural"),
            "mix": config.mix.model_copy(update={"logits": "fresh"}),
            "distill": distill,
            "phases": (Refine(kind="refine", steps=count),),
            "score": None,
            "adapt_batch_size": False,
        }
    )
