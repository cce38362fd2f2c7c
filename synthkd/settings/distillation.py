"""Settings of a distillation: its loss terms, phases, teachers and peers. Nothing here imports torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from synthkd.settings.base import (
    MOST_ITEMS,
    Batch,
    Count,
    Listed,
    NonNegative,
    Settings,
    Share,
    Temperature,
    Weight,
    Whole,
)
from synthkd.settings.control import AdaptSettings, SelectionSettings, SwapSettings
from synthkd.settings.models import ModelSettings
from synthkd.settings.terms import FeatureTerm, HintTerm, RelationTerm, TransferTerm
from synthkd.settings.training import OptimizerSettings


class DistillSettings(Settings):
    """The student's loss `alpha CE(student, y) + (1 - alpha) T^2 KL(teacher_T || student_T) + ...`, and optimizer."""

    temperature: Temperature = 4.0
    """T, which divides the logits before both softmaxes. Some images have another default (`synthkd config show`)."""
    alpha: Share = 0.0
    """Weight of the hard label; 1 - alpha is the weight of the soft labels. If the run has real images, only their
    annotated labels are hard labels, else the classes that the images were generated for."""
    soft: Weight | None = None
    """Weight of the soft labels; None: 1 - alpha."""
    standardise: bool = False
    """Standardise the logits of each image before the soft labels are compared (Sun et al. 2024), so that their scale
    has no effect."""
    logit_match: Weight = 0.0
    """Weight of the mean absolute difference of centred logits, in standard deviations of the teacher's."""
    hint: Weight | Literal["auto"] = 0.0
    """Weight of the feature hints: layers that are only used in training map the student's stages to the teacher's.
    auto: a curve from 50 to 0 where both networks show features that can be compared, else 0."""
    semantic: Weight = 0.0
    """Weight of the semantic consistency: cosines between the images of a batch, in the penultimate features of teacher
    and student."""
    transfer: Annotated[tuple[TransferTerm, ...], Listed] = ()
    """Further terms; those that compare features may each appear several times, at different places."""
    average: Weight = 0.0
    """Weight of the soft labels by the average of the student's own weights (needs `optimizer.ema`)."""
    adapt: AdaptSettings = AdaptSettings()
    terms: Annotated[dict[str, Weight], Listed] = Field(default_factory=dict)
    """Losses of your own: `package.module:function` (takes a StudentView, returns a scalar) -> weight."""
    batch_size: Batch = 64
    """Images of a step."""
    optimizer: OptimizerSettings = OptimizerSettings(kind="adamw", lr=3e-3, weight_decay=0.05, schedule="one_cycle")

    @property
    def features(self) -> tuple[FeatureTerm, ...]:
        """The terms that compare features: those of `hint`, `semantic` and `transfer`."""
        terms = [term for term in self.transfer if isinstance(term, FeatureTerm)]
        if self.semantic != 0.0:
            terms.insert(0, RelationTerm(kind="semantic", weight=self.semantic))
        if self.hint != 0.0 and self.hint != "auto":
            terms.insert(0, HintTerm(kind="hint", weight=self.hint))
        return tuple(terms)


class Pregenerate(Settings):
    """Train the generator against the frozen teacher alone and fill the bank."""

    kind: Literal["pregenerate"]
    rounds: Whole
    """Rounds of the generator."""
    discard: Whole = 0
    """Number of first rounds whose images are not kept, because the generator has hardly begun to learn."""


class Refine(Settings):
    """Train the student alone; the generator does not change."""

    kind: Literal["refine"]
    steps: Whole
    """Steps of the student."""


class Joint(Settings):
    """Alternate: one generator round before every `every` student steps."""

    kind: Literal["joint"]
    steps: Whole
    """Steps of the student."""
    every: Count = 15
    """Student steps per generator round."""


PhaseSettings = Annotated[Pregenerate | Refine | Joint, Field(discriminator="kind")]


class TeamSettings(Settings):
    """How several teachers label as one: by the weighted mean of their logits."""

    weighting: Literal["fixed", "confidence", "sample", "selected"] = "fixed"
    """fixed: by `weights`. confidence: by the certainty of each teacher about a batch. sample: by its certainty about
    an image. selected: one teacher at a time, by `selection`."""
    weights: Annotated[tuple[NonNegative, ...], Listed] | None = None
    """One weight for each teacher, that of `teacher` first; None: equal weights (fixed)."""
    selection: SelectionSettings = SelectionSettings()

    @model_validator(mode="after")
    def _possible(self) -> TeamSettings:
        if self.weights is not None and self.weighting != "fixed":
            raise ValueError(f"weights are those of fixed weighting: leave them out, or {self.weighting}")
        if self.weights is not None and not any(self.weights):
            raise ValueError("weights: at least one must be above 0")
        return self


class PeerSettings(Settings):
    """A network that learns together with the student, from the same batches and by the same loss terms.

    Controllers move the temperature and the weights of the student only; a peer has those of the configuration.
    """

    model: ModelSettings | None = None
    """None: a copy of the teacher, which continues to learn."""
    optimizer: OptimizerSettings | None = None
    """None: that of the student."""


class OnlineSettings(Settings):
    """Networks that learn together (deep mutual learning)."""

    peers: Annotated[tuple[PeerSettings, ...], Field(min_length=1, max_length=MOST_ITEMS)]
    """The networks beside the student."""
    mutual: Weight = 1.0
    """Weight of the mean divergence from the predictions of the other networks."""
    temperature: Temperature = 1.0
    """Temperature of these predictions."""
    averaged: bool = False
    """Let each network teach the others by the average of its weights (needs `optimizer.ema`)."""
    swap: SwapSettings | None = None
    """Take the soft labels from one of the networks, at first from peer 1; the rule may pass this role to another.
    None: the soft labels come from the frozen teacher."""
