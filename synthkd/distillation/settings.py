"""The configuration of a distillation: its terms, its phases, and what adapts. Nothing here imports torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from synthkd.settings import Count, NonNegative, OptimizerSettings, Positive, Settings, Share, Temperature, Weight

Places = Literal["stages", "penultimate"] | tuple[tuple[str, str], ...]
"""Where features are compared: every stage, what enters the last layer, or pairs of module paths, the teacher's first;
`PATH:input` is what enters a module."""


class HintTerm(Settings):
    """Regressed features (FitNets): a layer of its own maps the student's onto the teacher's."""

    kind: Literal["hint"]
    weight: Weight = 1.0
    at: Places = "stages"


class AttentionTerm(Settings):
    """Attention transfer: where in an image activations are large."""

    kind: Literal["attention"]
    weight: Weight = 1.0
    at: Places = "stages"
    power: Positive = 2.0
    form: Literal["paper", "authors"] = "authors"


class RelationTerm(Settings):
    """How the images of a batch lie to each other: distances or angles (RKD), similarity-preserving, or cosines."""

    kind: Literal["rkd_distance", "rkd_angle", "similarity", "semantic"]
    weight: Weight = 1.0
    at: Places = "penultimate"


class AlignmentTerm(Settings):
    """Squared Wasserstein distance of projected features, whatever positions they belong to."""

    kind: Literal["alignment"]
    weight: Weight = 1.0
    at: Places = "stages"
    distance: Literal["sliced", "sinkhorn"] = "sliced"
    projections: Count = 64


class AdapterTerm(Settings):
    """The architecture adapter: cross-attention lays the student's features out as the teacher's are."""

    kind: Literal["adapter"]
    weight: Weight = 1.0
    at: Places = "stages"
    content: bool = False
    """Ask with the teacher's features, not with places alone."""


class DecoupledTerm(Settings):
    """Decoupled distillation (DKD): the class that the teacher sees and the rest apart; in the place of soft labels
    with `soft: 0`."""

    kind: Literal["dkd"]
    weight: Weight = 1.0
    alpha: NonNegative = 1.0
    beta: NonNegative = 8.0


FeatureTerm = HintTerm | AttentionTerm | RelationTerm | AlignmentTerm | AdapterTerm
TransferTerm = Annotated[FeatureTerm | DecoupledTerm, Field(discriminator="kind")]


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
    transfer: tuple[TransferTerm, ...] = ()
    """Further terms; those that compare features may each stand several times, at different places."""
    terms: dict[str, Weight] = Field(default_factory=dict)
    """Losses of your own: `package.module:function` (takes a StudentView, gives a scalar) -> weight."""
    batch_size: Count = 256
    optimizer: OptimizerSettings = OptimizerSettings()

    @property
    def features(self) -> tuple[FeatureTerm, ...]:
        """The terms that compare features, those of `hint` and `semantic` among them."""
        found = [term for term in self.transfer if not isinstance(term, DecoupledTerm)]
        if self.semantic != 0.0:
            found.insert(0, RelationTerm(kind="semantic", weight=self.semantic))
        if self.hint != 0.0:
            found.insert(0, HintTerm(kind="hint", weight=self.hint))
        return tuple(found)


class Pregenerate(Settings):
    """Train the generator against the frozen teacher alone and fill the bank."""

    kind: Literal["pregenerate"]
    rounds: Annotated[int, Field(ge=0)]
    discard: Annotated[int, Field(ge=0)] = 0
    """First rounds whose images, those of a generator that has hardly begun to learn, are not kept."""


class Refine(Settings):
    """Train the student; the generator is fixed."""

    kind: Literal["refine"]
    steps: Annotated[int, Field(ge=0)]


class Joint(Settings):
    """Alternate: one generator round before every `every` student steps."""

    kind: Literal["joint"]
    steps: Annotated[int, Field(ge=0)]
    every: Count = 15
    """Student steps per generator round."""


PhaseSettings = Annotated[Pregenerate | Refine | Joint, Field(discriminator="kind")]


class TemperatureSettings(Settings):
    """The controller of the temperature: down when the student's loss is small, up when it is large."""

    start: Positive = 5.0
    low: Positive = 1.0
    high: Positive = 10.0
    lower_below: NonNegative = 0.1
    raise_above: NonNegative = 0.5
    down: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    up: Annotated[float, Field(ge=1.0)] = 1.1

    @model_validator(mode="after")
    def _ordered(self) -> TemperatureSettings:
        if not self.low <= self.start <= self.high:
            raise ValueError("must hold: low <= start <= high")
        if self.lower_below > self.raise_above:
            raise ValueError("lower_below must not be above raise_above")
        return self


class WeightSettings(Settings):
    """The controller of two weights that add up to 1."""

    start: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """First weight, before any capacity is known."""
    rate: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """How far an update goes towards the new weight; 1 goes all the way."""


class StrengthSettings(Settings):
    """The controller of the strength of distillation by capacity."""

    beta: float | None = 1.0
    """Gain of the capacity in the strength; None leaves capacity out of it, and only the gap counts."""
    threshold: Positive = 0.05
    """Gap, as a share of the teacher's capacity, above which distillation is strengthened."""
    boost: Annotated[float, Field(ge=1.0)] = 1.5
    """Factor of the strength while the gap is above the threshold; 1 leaves the gap out."""
