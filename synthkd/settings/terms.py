"""Terms of the student's loss that look inside networks, chosen by `kind:`. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

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

Numbered = TypeVar("Numbered", bound=TransferTerm)


def by_name(terms: Sequence[Numbered]) -> dict[str, Numbered]:
    """The terms by their kind, numbered from the second of a kind on, in their order."""
    named: dict[str, Numbered] = {}
    for term in terms:
        before = sum(other.kind == term.kind for other in named.values())
        named[f"{term.kind} {before + 1}" if before else term.kind] = term
    return named
