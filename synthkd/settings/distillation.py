"""The configuration of a distillation: its terms, its phases, and what adapts. Nothing here imports torch."""

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
    """What the student learns from: `alpha * CE(student, y) + (1 - alpha) * T^2 KL(teacher_T || student_T) + ...`."""

    temperature: Temperature = 4.0
    alpha: Share = 0.0
    """Weight of the hard label; 1 - alpha is the weight of the soft labels. With real images in the run only their
    annotated labels count as hard ones, without any the labels that were asked for."""
    soft: Weight | None = None
    """Weight of the soft labels; None: 1 - alpha."""
    standardise: bool = False
    """Compare soft labels of logits that are standardised for each image (Sun et al. 2024): their order and shape count
    and not their size."""
    logit_match: Weight = 0.0
    """Weight of the mean absolute difference of centred logits, in standard deviations of the teacher's."""
    hint: Weight = 0.0
    """Weight of the feature hints: training-only regressors map the student's stages onto the teacher's."""
    semantic: Weight = 0.0
    """Weight of the semantic consistency: which images of a batch are alike, in the teacher's penultimate features and
    in the student's."""
    transfer: Annotated[tuple[TransferTerm, ...], Listed] = ()
    """Further terms; those that compare features may each stand several times, at different places."""
    average: Weight = 0.0
    """Weight of the soft labels that the average of the student's own weights gives (needs `optimizer.ema`)."""
    adapt: AdaptSettings = AdaptSettings()
    terms: Annotated[dict[str, Weight], Listed] = Field(default_factory=dict)
    """Losses of your own: `package.module:function` (takes a StudentView, gives a scalar) -> weight."""
    batch_size: Batch = 64
    optimizer: OptimizerSettings = OptimizerSettings(kind="adamw", lr=3e-3, weight_decay=0.05, schedule="one_cycle")

    @property
    def features(self) -> tuple[FeatureTerm, ...]:
        """The terms that compare features, those of `hint` and `semantic` among them."""
        terms = [term for term in self.transfer if isinstance(term, FeatureTerm)]
        if self.semantic != 0.0:
            terms.insert(0, RelationTerm(kind="semantic", weight=self.semantic))
        if self.hint != 0.0:
            terms.insert(0, HintTerm(kind="hint", weight=self.hint))
        return tuple(terms)


class Pregenerate(Settings):
    """Train the generator against the frozen teacher alone and fill the bank."""

    kind: Literal["pregenerate"]
    rounds: Whole
    discard: Whole = 0
    """First rounds whose images, those of a generator that has hardly begun to learn, are not kept."""


class Refine(Settings):
    """Train the student; the generator is fixed."""

    kind: Literal["refine"]
    steps: Whole


class Joint(Settings):
    """Alternate: one generator round before every `every` student steps."""

    kind: Literal["joint"]
    steps: Whole
    every: Count = 15
    """Student steps per generator round."""


PhaseSettings = Annotated[Pregenerate | Refine | Joint, Field(discriminator="kind")]


class TeamSettings(Settings):
    """How several teachers label as one: by the weighted mean of their logits."""

    weighting: Literal["fixed", "confidence", "sample", "selected"] = "fixed"
    """fixed: by `weights`. confidence: by how sure each is of a batch. sample: by how sure each is of an image.
    selected: one at a time, by `selection`."""
    weights: Annotated[tuple[NonNegative, ...], Listed] | None = None
    """One for each teacher, the first being `teacher`; None: all alike (fixed)."""
    selection: SelectionSettings = SelectionSettings()

    @model_validator(mode="after")
    def _possible(self) -> TeamSettings:
        if self.weights is not None and self.weighting != "fixed":
            raise ValueError(f"weights are those of fixed weighting: leave them out, or {self.weighting}")
        if self.weights is not None and not any(self.weights):
            raise ValueError("weights: at least one must be above 0")
        return self


class PeerSettings(Settings):
    """A network that learns beside the student, from the same batches and by the same terms, with the weights as they
    were set: what adapts is the student's."""

    model: ModelSettings | None = None
    """None: a copy of the teacher, which goes on learning."""
    optimizer: OptimizerSettings | None = None
    """None: as the student's."""


class OnlineSettings(Settings):
    """Networks that learn together (deep mutual learning)."""

    peers: Annotated[tuple[PeerSettings, ...], Field(min_length=1, max_length=MOST_ITEMS)]
    mutual: Weight = 1.0
    """Weight of the mean divergence from the answers of the others."""
    temperature: Temperature = 1.0
    """Of those answers."""
    averaged: bool = False
    """Let each teach the others by the average of its weights (needs `optimizer.ema`)."""
    swap: SwapSettings | None = None
    """Soft labels come from one of the networks, at first the first peer, and who it is may change. None: from the
    frozen teacher."""
