"""A teacher's answers to images of noise, by which a dry run tells what is too long for it to do as a whole."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from synthkd.pipelines.run.timing import LIMIT, seconds_of
from synthkd.rng import stream
from synthkd.taps import evaluating
from synthkd.types import ImageSpec

FEW, SOME, MANY = 4, 32, 256
"""Images of a measured pass: few of them tell whether a whole round or step, or a pass of more, fits a dry run."""

MOMENT = LIMIT / 20
"""Seconds that a measured pass may take, and that it may be repeated: the first pass of a network takes longer."""


@dataclass(frozen=True)
class Answers:
    """Passes of a teacher.

    Attributes:
        logits: its answer without gradient; None: nothing answers, and takes no time.
        model: answers with gradient.
        spec: of the images.
        device: of both.
        gradients: whether the work of the job needs the gradient to the images.
        largest: number of images of the largest pass with gradient that the job does.
    """

    logits: Callable[[Tensor], object] | None
    model: nn.Module | None
    spec: ImageSpec
    device: torch.device
    gradients: bool
    largest: int

    def __call__(self, count: int, gradient: bool = True) -> None:
        """Answer images; with the gradient to them if the job needs it and `gradient` is True."""
        if self.logits is None or self.model is None:
            return
        images = torch.rand(count, *self.spec.shape, generator=stream(0, "timing")).to(self.device)
        if not gradient or not self.gradients:
            self.logits(images)
            return
        with evaluating(self.model), torch.enable_grad():
            torch.autograd.grad(self.model(images.requires_grad_()).sum(), images)

    @functools.cached_property
    def per_image(self) -> float:
        """Seconds of the answer to an image, with the gradient to it if the job needs that."""
        part = self.images_in_part
        return self._per_image(part) if part > FEW else self._of_few

    @property
    def images_in_part(self) -> int:
        """Images of a pass, with the gradient to them, that stands for something which is too long as a whole."""
        return max(FEW, min(SOME, self.largest)) if self._of_few * SOME < MOMENT else FEW

    @property
    def images_of_pass(self) -> int:
        """Images of a measured pass of any network: a single image of many takes less time than one alone."""
        return MANY if self.per_image * MANY < MOMENT else FEW

    @functools.cached_property
    def _of_few(self) -> float:
        return self._per_image(FEW)

    def _per_image(self, count: int) -> float:
        return 0.0 if self.logits is None else seconds_of(lambda _: self(count), MOMENT) / count

    def fits(self, passes: int) -> bool:
        """Whether something fits a dry run that has the teacher answer so many images, and cannot be cut."""
        return self.per_image * passes <= LIMIT
