"""What is measured and drawn while a distillation runs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from synthkd.data.read.on_disk import part_of
from synthkd.data.read.splits import RealData
from synthkd.metrics.utility import accuracy, predict
from synthkd.models import save
from synthkd.models.weights import finite_state
from synthkd.pipelines.run.job import Job
from synthkd.pipelines.student.assembly import Assembly
from synthkd.pipelines.student.networks import finished
from synthkd.reports.grids import chosen, save_grid
from synthkd.taps import evaluating
from synthkd.training.loop import Action
from synthkd.training.measuring import Allowance
from synthkd.types import takes_labels

STUDENT, PEERS = "student", "peers"
"""Folders of the run directory with the finished networks."""


@dataclass(frozen=True)
class RunWatch:
    """The actions of a run beside training; each returns what is logged."""

    job: Job
    assembly: Assembly
    real_test: RealData | None
    allowance: Allowance

    def test(self, _: int) -> dict[str, Tensor | float]:
        """Accuracy of the student on real test data, if there is any."""
        if self.real_test is None:
            return {}
        student = self.assembly.learner.evaluated
        finite_state(student, "student")
        with evaluating(student):
            images, device, size = self.real_test.images, self.job.device, self.assembly.batch.of_process
            whole = torch.arange(len(images))

            def predicted(rows: Tensor, _: int) -> Tensor:
                # One process takes the images themselves: a part of those in memory is a copy.
                return predict(student, images if len(rows) == len(whole) else part_of(images, rows), device, size)

            predictions = self.assembly.learner.processes.samples(predicted, whole)
        return {"test/accuracy": accuracy(predictions, self.real_test.labels).value}

    def evaluate(self, number: int, step: int) -> dict[str, Tensor | float]:
        """Evaluate on held-out images, let the controllers follow, and log a role swap as an event.

        Args:
            number: of the student's step.
            step: of the run.
        """
        evaluation = self.assembly.evaluation
        before = evaluation.controllers.teaching
        values = evaluation(number)
        teaching = evaluation.controllers.teaching
        if teaching is not None and teaching != before:
            name = self.assembly.students[teaching].name
            # Of the step, as its numbers are: a run that goes on at `step` evaluates again.
            self.job.monitor.event(step + 1, f"role swap: {name} teaches from here on", kind="swap", teaching=name)
        return values

    def publish(self, _: int) -> dict[str, Tensor | float]:
        """Save the present student."""
        if self.job.accelerator.is_main_process:
            with evaluating(self.assembly.learner.evaluated):
                student = finished(self.assembly.students[0])
                save(student, self.job.directory / STUDENT, saved_notes(self.assembly))
        return {}

    def after_rounds(self) -> list[Action]:
        """The grids and the scores of generated images; `every` counts rounds of the generator."""
        actions = [Action("grid", self.draw_grid, self.assembly.config.grid_every, after=True)]
        if self.assembly.scores is not None:
            actions.append(Action("score", self.score, self.assembly.scores.settings.every, after=True))
        return actions

    def score(self, _: int) -> dict[str, Tensor | float]:
        """Scores of the newest images of the memory bank; none while it is empty."""
        scores, generated = self.assembly.scores, self.assembly.transfer_set.generated
        assert scores is not None
        assert generated is not None
        if not self.job.accelerator.is_main_process or not len(generated.bank):
            return {}
        newest = generated.bank.newest(scores.settings.images)
        return scores(newest.images, newest.labels)

    def draw_grid(self, step: int) -> dict[str, Tensor | float]:
        """Save a grid of generated images of the same random rows each time, a column for each class shown."""
        generated, subject = self.assembly.transfer_set.generated, self.assembly.subject
        if self.job.accelerator.is_main_process and generated is not None:
            spec, names = subject.spec, subject.class_names
            columns, rows = chosen(range(spec.classes), spec.height, spec.width)
            images = generated.grid(torch.tensor(columns).repeat(rows), self.allowance.tick(len(columns)))
            images = images[: len(images) // len(columns) * len(columns)]  # whole rows
            above = None
            if takes_labels(generated.generator):
                above = [names[label] if names else str(label) for label in columns]
            path = self.job.directory / "samples" / f"step_{step + 1:06d}.png"
            save_grid(images.cpu(), len(columns), path, above)
            self.job.monitor.picture(step + 1, "samples", path)
        return {}


def saved_notes(assembly: Assembly) -> dict[str, int | None]:
    """Facts about the training that are saved with a student."""
    return {"seed": assembly.config.seed, "real_images_used": assembly.transfer_set.real_images_used}
