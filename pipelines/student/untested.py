"""What a finished run says without test data: an estimate of the student's accuracy, and advice by its curves."""

from __future__ import annotations

from dataclasses import replace

from synthkd.distillation.advice import on_floor, still_rising, too_small
from synthkd.distillation.phases import rounds_alone
from synthkd.generators.method_settings import NoisyLabelSettings
from synthkd.generators.settings import ProceduralSettings
from synthkd.metrics.untested import Calibration, Range, estimated_accuracy
from synthkd.pipelines.config import DistillConfig
from synthkd.reports.results import AccuracyEstimate
from synthkd.training.monitor import Monitor


def estimate_result(estimated: tuple[Range, Calibration] | None, teacher: float | None) -> AccuracyEstimate | None:
    """The estimate as the result has it; None without one.

    Args:
        estimated: agreement of student and teacher on images of the task, and by what it was estimated.
        teacher: accuracy of the teacher as the configuration states it, in [0, 1]; None: it says nothing.
    """
    if estimated is None:
        return None
    agreement, calibration = estimated
    estimate = AccuracyEstimate(
        agreement.value, (agreement.low, agreement.high), calibration.runs, calibration.covered, teacher
    )
    if teacher is None:
        return estimate
    accuracy = estimated_accuracy(agreement, teacher)
    return replace(
        estimate,
        covered=calibration.covered_accuracy,
        accuracy=accuracy.value,
        accuracy_interval=(accuracy.low, accuracy.high),
    )


def advice_of(config: DistillConfig, monitor: Monitor) -> tuple[str, ...]:
    """The advice by the curves of a run whose images all come from a generator without real ones; else none.

    Args:
        config: of the run, with the generator that made the images.
        monitor: its log.
    """
    generated = config.generated
    if generated is None or len(config.sources) > 1 or generated.data is not None:
        return ()
    rounds, fresh = monitor.series("fresh/agreement")
    steps = [step - rounds_alone(config.phases, step) for step in rounds]
    advice = [still_rising(steps, fresh), too_small(steps, fresh)]
    # Drawn images are the same at every difficulty, and the default weights of noisy_label are meant for the floor.
    moves = generated.difficulty.low < generated.difficulty.high
    if moves and not isinstance(generated.named, ProceduralSettings | NoisyLabelSettings):
        difficulties = dict(zip(*monitor.series("difficulty"), strict=True))
        values = [difficulties[step] for step in rounds]
        key = f"{config.key_of(generated)}.difficulty"
        advice.append(on_floor(rounds, values, fresh, generated.difficulty.low, key))
    return tuple(one for one in advice if one is not None)
