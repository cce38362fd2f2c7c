"""Settings of further terms of the student's loss, chosen by `kind:`. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, TypeVar

from pydantic import Field

from synthkd.settings.base import (
    Fraction,
    Listed,
    NonNegative,
    Positive,
    Settings,
    Units,
    Weight,
)

Places = Literal["stages", "penultimate"] | Annotated[tuple[tuple[str, str], ...], Listed]
"""Where features are compared: at every stage, at the input of the last layer, or at pairs of module paths, the
teacher's first. `PATH:input` means the input of a module."""


class HintTerm(Settings):
    """Regressed features (FitNets): an additional layer maps the student's features to the teacher's."""

    kind: Literal["hint"]
    weight: Weight = 1.0
    """Factor of the loss: a number, or a curve over the run."""
    at: Places = "stages"
    """`stages`, `penultimate` (the input of the last layer), or pairs of module paths, the teacher's first."""


class AttentionTerm(Settings):
    """Attention transfer: compares where in an image activations are large."""

    RETIRED: ClassVar = {"power": 2.0}

    kind: Literal["attention"]
    weight: Weight = 1.0
    """Factor of the loss: a number, or a curve over the run."""
    at: Places = "stages"
    """`stages`, `penultimate` (the input of the last layer), or pairs of module paths, the teacher's first."""
    form: Literal["paper", "authors"] = "authors"
    """The formula of the paper, or that of its authors' code."""


class RelationTerm(Settings):
    """Relations between the images of a batch: distances or angles (RKD), similarities, or cosines."""

    kind: Literal["rkd_distance", "rkd_angle", "similarity", "semantic"]
    """rkd_distance, rkd_angle: distances or angles between images. similarity: inner products. semantic: cosines."""
    weight: Weight = 1.0
    """Factor of the loss: a number, or a curve over the run."""
    at: Places = "penultimate"
    """`stages`, `penultimate` (the input of the last layer), or pairs of module paths, the teacher's first."""


class AlignmentTerm(Settings):
    """Squared Wasserstein distance of projected features, regardless of their positions."""

    RETIRED: ClassVar = {"projections": 64}

    kind: Literal["alignment"]
    weight: Weight = 1.0
    """Factor of the loss: a number, or a curve over the run."""
    at: Places = "stages"
    """`stages`, `penultimate` (the input of the last layer), or pairs of module paths, the teacher's first."""
    distance: Literal["sliced", "sinkhorn"] = "sliced"
    """sliced: the mean over 64 random directions, fast. sinkhorn: entropic optimal transport in all dimensions."""


class AdapterTerm(Settings):
    """The architecture adapter: cross-attention brings the student's features into the layout of the teacher's."""

    kind: Literal["adapter"]
    weight: Weight = 10.0
    """The default is large because the loss falls far below 1 as the layers learn; a weight of 1 had little effect."""
    at: Places = "stages"
    """`stages`, `penultimate` (the input of the last layer), or pairs of module paths, the teacher's first."""
    content: bool = False
    """Use the teacher's features as queries of the attention, not positions only."""


class DecoupledTerm(Settings):
    """Decoupled distillation (DKD): separate losses for the class that the teacher predicts and for all others.

    With `soft: 0` it takes the place of the soft labels.
    """

    kind: Literal["dkd"]
    weight: Weight = 1.0
    """Factor of the loss: a number, or a curve over the run."""
    alpha: NonNegative = 1.0
    """Weight of the predicted class against the rest."""
    beta: NonNegative = 8.0
    """Weight of the other classes among each other."""


class ContrastTerm(Settings):
    """Contrastive distillation (CRD): the student's features of an image must identify the teacher's of the same image
    among those of other images."""

    kind: Literal["crd"]
    weight: Weight = 1.0
    """Factor of the loss: a number, or a curve over the run."""
    dimension: Units = 64
    """Dimension of the space into which trained layers project the features of both."""
    temperature: Positive = 0.1
    """Divides the similarities; the lower, the more the most similar images count."""
    negatives: Annotated[int, Field(ge=0, le=2**16)] = 256
    """Images drawn from the bank for each batch, in addition to the other images of the batch; set 0 without a bank."""


class ViewTerm(Settings):
    """Self-supervised distillation (SSKD): similarities of each rotated image to the upright images of the batch."""

    kind: Literal["sskd"]
    weight: Weight = 100.0
    """The default is large because the loss is about 0.01."""
    temperature: Positive = 0.5
    """Divides the similarities; the lower, the more the most similar images count."""
    keep: Fraction = 0.75
    """Share used of those rotated images that the teacher takes for another image; all others are used anyway."""


class ExitsTerm(Settings):
    """Self-distillation: exits at shallow stages, for training only, learn the logits of the last layer."""

    kind: Literal["exits"]
    weight: Weight = 1.0
    """Factor of the loss: a number, or a curve over the run."""
    at: Literal["stages"] | Annotated[tuple[str, ...], Listed] = "stages"
    """Modules of the student with an exit; stages: all stages but the last."""
    features: NonNegative = 0.0
    """Weight of the hint from the input of the last layer, relative to that of its logits."""


FeatureTerm = HintTerm | AttentionTerm | RelationTerm | AlignmentTerm | AdapterTerm
"""Terms that compare features of teacher and student at chosen places."""

TransferTerm = Annotated[FeatureTerm | ContrastTerm | ViewTerm | ExitsTerm | DecoupledTerm, Field(discriminator="kind")]

Numbered = TypeVar("Numbered", bound=TransferTerm)


def by_name(terms: Sequence[Numbered]) -> dict[str, Numbered]:
    """The terms by name, in their order. A name is the kind, numbered from the second term of a kind on."""
    named: dict[str, Numbered] = {}
    for term in terms:
        before = sum(other.kind == term.kind for other in named.values())
        named[f"{term.kind} {before + 1}" if before else term.kind] = term
    return named
