"""What is made: the parts of a generated dataset, and the lines of its plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from synthkd.data.read.on_disk import Pixels
from synthkd.data.written.writers import Layout, estimate
from synthkd.models import Classifier, parameters
from synthkd.pipelines.config import GenerateConfig
from synthkd.pipelines.dataset.request import Request
from synthkd.pipelines.run.disk import free_bytes
from synthkd.pipelines.run.job import generator_bytes, training_bytes
from synthkd.pipelines.scores.running import RunningScores
from synthkd.settings import LoadedModel
from synthkd.system.resources import size
from synthkd.types import TrainableGenerator


@dataclass(frozen=True)
class DatasetPlan:
    """Everything a dataset is made of.

    Attributes:
        config: the configuration.
        request: its resolved settings and real data.
        teacher: answers the images; untrained while the work is only planned.
        generator: makes them.
        counts: images of each class.
        layout: of the files.
        scores: measures the generator while it is trained, or None.
        warnings: what is odd about the teacher, a line each.
    """

    config: GenerateConfig
    request: Request
    teacher: Classifier
    generator: TrainableGenerator
    counts: Sequence[int]
    layout: Layout
    scores: RunningScores | None
    warnings: tuple[str, ...]

    @property
    def compared(self) -> Pixels | None:
        """Real images uint8 `[M, C, H, W]` that a filter looks for copies of, or None without that filter."""
        real = self.request.real
        return None if real is None or self.config.filters.copies is None else real.train.images

    @property
    def beside(self) -> int:
        """Bytes that the run keeps beside the dataset until it is finished."""
        spec, config = self.teacher.spec, self.config
        part = spec.channels * spec.height * spec.width + 4 * spec.classes + 12
        checkpoints = (config.keep_checkpoints + 1) * generator_bytes(self.generator) if config.rounds else 0
        return self.layout.count * part + training_bytes(parameters(self.teacher)) + checkpoints

    @property
    def bytes(self) -> int:
        """Bytes of dataset and run."""
        return estimate(self.layout, self.teacher.spec) + self.beside

    def plan(self) -> tuple[str, ...]:
        """The lines of a dry run."""
        config, request, teacher, layout = self.config, self.request, self.teacher, self.layout
        out = Path(config.out or "runs").absolute()
        trained = "" if isinstance(request.teacher, LoadedModel) else ", trained first"
        source = f"of {config.run}" if config.run is not None else str(request.generator.kind)
        rounds = f", trained for {config.rounds:,} rounds" if config.rounds else ""
        real = "none" if request.real is None else f"{len(request.real.train):,} of {request.real.train.name}"
        low, high = min(self.counts), max(self.counts)
        each = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        shards = "" if config.format == "folder" else f", {layout.shards:,} shards"
        return (
            f"generate {config.name}: {teacher.spec}",
            f"  teacher: {parameters(teacher):,} parameters{trained}",
            *(f"  warning: {warning}" for warning in self.warnings),
            f"  generator: {source}{rounds}",
            f"  real images: {real}",
            f"  images: {layout.count:,}, {each} of each class, as {config.format}{shards}",
            f"  disk: at most about {size(self.bytes - self.beside)} of dataset and {size(self.beside)} beside it "
            f"until it is done; {size(free_bytes(out))} are free",
        )
