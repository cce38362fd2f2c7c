"""The configuration of a distillation: its terms, its phases, and what adapts. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

from pydantic import Field, model_validator

from synthkd.settings.base import (
    LARGE,
    MOST_ITEMS,
    Batch,
    Count,
    Fraction,
    Images,
    Listed,
    ModelSettings,
    NonNegative,
    Number,
    OptimizerSettings,
    Positive,
    Settings,
    Share,
    Temperature,
    Units,
    Weight,
    Whole,
)

Places = Literal["stages", "penultimate"] | Annotated[tuple[tuple[str, str], ...], Listed]
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
    projections: Units = 64


class AdapterTerm(Settings):
    """The architecture adapter: cross-attention lays the student's features out as the teacher's are."""

    kind: Literal["adapter"]
    weight: Weight = 10.0
    """The loss itself falls far below 1 as the layers learn; with 1 it did little."""
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


class ContrastTerm(Settings):
    """Which of the teacher's features belong to the same image (CRD), against other images of the bank."""

    kind: Literal["crd"]
    weight: Weight = 1.0
    dimension: Units = 64
    """Of the space that both are projected into, by layers that are trained along."""
    temperature: Positive = 0.1
    negatives: Annotated[int, Field(ge=0, le=2**16)] = 256
    """Images drawn from the bank for each batch, beside the others of the batch; 0 where no bank is filled."""


class ViewTerm(Settings):
    """How alike the teacher finds a turned image and the others of the batch (SSKD)."""

    kind: Literal["sskd"]
    weight: Weight = 100.0
    """The loss itself is about 0.01."""
    temperature: Positive = 0.5
    keep: Fraction = 0.75
    """Share of the rows in which the teacher mistakes the image that is learned from all the same."""


class ExitsTerm(Settings):
    """Exits at shallow stages, for training only, learn from the deepest answer (self-distillation)."""

    kind: Literal["exits"]
    weight: Weight = 1.0
    at: Literal["stages"] | Annotated[tuple[str, ...], Listed] = "stages"
    """Modules of the student; stages: all but the last."""
    features: NonNegative = 0.0
    """Weight, beside that of the answers, of what enters the last layer."""


FeatureTerm = HintTerm | AttentionTerm | RelationTerm | AlignmentTerm | AdapterTerm
TransferTerm = Annotated[FeatureTerm | ContrastTerm | ViewTerm | ExitsTerm | DecoupledTerm, Field(discriminator="kind")]


class TemperatureSettings(Settings):
    """The controller of the temperature: down when the student's loss is small, up when it is large."""

    start: Positive = 5.0
    low: Positive = 1.0
    high: Positive = 10.0
    lower_below: NonNegative = 0.1
    raise_above: NonNegative = 0.5
    down: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    up: Annotated[float, Field(ge=1.0, le=LARGE)] = 1.1

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

    beta: Number | None = 1.0
    """Gain of the capacity in the strength; None leaves capacity out of it, and only the gap counts."""
    threshold: Positive = 0.05
    """Gap, as a share of the teacher's capacity, above which distillation is strengthened."""
    boost: Annotated[float, Field(ge=1.0, le=LARGE)] = 1.5
    """Factor of the strength while the gap is above the threshold; 1 leaves the gap out."""


class UncertaintyBalanceSettings(Settings):
    """Weights by learned variances (Kendall, Gal and Cipolla 2018), for terms that are never negative."""

    kind: Literal["uncertainty"]
    least: Positive = 1e-3
    """Loss below which a smaller one hardly counts for more."""


class GradientBalanceSettings(Settings):
    """Weights under which all terms pull alike, those that lag a little harder (GradNorm, Chen et al. 2018)."""

    kind: Literal["gradient"]
    every: Count = 20
    """Steps between two measurements, each of which costs a backward pass for every term."""
    asymmetry: NonNegative = 1.5
    """How much harder a term pulls that lags; 0: all alike."""
    rate: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2
    """How far a measurement moves the weights."""


BalanceSettings = Annotated[UncertaintyBalanceSettings | GradientBalanceSettings, Field(discriminator="kind")]


class AdaptSettings(Settings):
    """What is looked at while the student learns, and what follows from it."""

    every: Count = 100
    """Student steps between two looks at how far it is (see `images`)."""
    images: Images = 500
    """So many: held-out real images where there are any, else the newest of the bank."""
    temperature: TemperatureSettings | None = None
    """Let the temperature follow the student's loss on them, in the place of `distill.temperature`."""
    weights: WeightSettings | None = None
    """Weigh what the teacher answers against all else, by twice the two adaptive weights."""
    strength: StrengthSettings | None = None
    """Weigh all that comes from the teacher by the student's capacity."""
    balance: BalanceSettings | None = None
    """Weigh the terms against each other, beside their own weights."""


Numbered = TypeVar("Numbered", bound=TransferTerm)


def by_name(terms: Sequence[Numbered]) -> dict[str, Numbered]:
    """The terms by their kind, numbered from the second of a kind on, in their order."""
    found: dict[str, Numbered] = {}
    for term in terms:
        before = sum(other.kind == term.kind for other in found.values())
        found[f"{term.kind} {before + 1}" if before else term.kind] = term
    return found


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
    batch_size: Batch = 256
    optimizer: OptimizerSettings = OptimizerSettings()

    @property
    def features(self) -> tuple[FeatureTerm, ...]:
        """The terms that compare features, those of `hint` and `semantic` among them."""
        found = [term for term in self.transfer if isinstance(term, FeatureTerm)]
        if self.semantic != 0.0:
            found.insert(0, RelationTerm(kind="semantic", weight=self.semantic))
        if self.hint != 0.0:
            found.insert(0, HintTerm(kind="hint", weight=self.hint))
        return tuple(found)


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


class SelectionSettings(Settings):
    """Which of several teachers teaches until the next look (`distill.adapt.every`), by a linear bandit over the
    student's accuracy, its divergence from each teacher and what a teacher's answer costs."""

    accuracy: NonNegative = 10.0
    """Weight of the gain in accuracy in the reward; between two looks it is a hundredth or less."""
    divergence: NonNegative = 0.1
    """Weight of the divergence KL(teacher || student) in the reward."""
    cost: NonNegative = 0.1
    """Weight of the cost in the reward: multiply-accumulates of the teacher over those of the largest."""
    exploration: NonNegative = 1.0
    """Standard errors that are added to what a teacher is expected to be worth."""
    forget: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.02
    """Share of what was learned that each choice forgets: what helps a student changes while it learns."""


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


class SwapSettings(Settings):
    """When the one who learns becomes the one who teaches."""

    above: Positive = 0.95
    """It teaches from when its accuracy on the images looked at exceeds this share of the present teacher's."""
    again_below: Positive = 0.9
    """After a swap there is no other before the learners' best has fallen below this share, or the teaching one below
    this share of it, so that it cannot flap."""

    @model_validator(mode="after")
    def _ordered(self) -> SwapSettings:
        if self.again_below > self.above:
            raise ValueError("again_below must not be above `above`, or roles would change to and fro")
        return self


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
