"""Loss terms that compare features of teacher and student, and the layers that align them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthkd.distillation.terms.adapter import ArchitectureAdapter, no_finer
from synthkd.errors import ConfigError, ModelError
from synthkd.losses.alignment import heterogeneous_alignment, positions, sinkhorn_wasserstein, sliced_wasserstein
from synthkd.losses.attention import attention_transfer
from synthkd.losses.features import hint
from synthkd.losses.relations import (
    rkd_angle,
    rkd_distance,
    semantic_consistency,
    similarity_preserving,
)
from synthkd.models.classifier import Classifier
from synthkd.models.layout import blank_features, head, stages
from synthkd.rng import stream
from synthkd.schedules import peak
from synthkd.settings import (
    AdapterTerm,
    AlignmentTerm,
    AttentionTerm,
    FeatureTerm,
    HintTerm,
    RelationTerm,
    Schedule,
    by_name,
)
from synthkd.taps import INPUT

RELATIONS = {
    "rkd_distance": rkd_distance,
    "rkd_angle": rkd_angle,
    "similarity": similarity_preserving,
    "semantic": semantic_consistency,
}


@dataclass(frozen=True)
class Pair:
    """Two places whose features are compared.

    Attributes:
        teacher: module path of the teacher, as `synthkd.taps.observe` takes it.
        student: module path of the student.
    """

    teacher: str
    student: str


class Transfer(nn.Module):
    """Terms that compare features of teacher and student, with the layers that align them.

    The layers are trained with the student and never saved with it. At "stages" the last stages of both networks form a
    pair, the stages before them another, and so on; hints compare the penultimate features too.

    Args:
        terms: the terms and their places.
        teacher: gives the targets; its weights do not become part of this module.
        student: the network that learns.
        seed: of random directions.

    Attributes:
        terms: name -> term. A name is the term's kind, numbered from the second term of a kind on.
        pairs: name of a term -> the places that it compares.
        layers: name of a term -> one layer per pair.

    Raises:
        ConfigError: features that a term cannot compare.
        ModelError: a module path that a model does not have.
    """

    def __init__(self, terms: Sequence[FeatureTerm], teacher: Classifier, student: Classifier, seed: int = 0) -> None:
        super().__init__()
        self.terms = by_name(terms)
        self._seed = seed
        pairs_of = {name: _pairs(term, teacher, student) for name, term in self.terms.items()}
        # One pass of a blank image for each network shows the shapes at all places.
        every = [pair for pairs in pairs_of.values() for pair in pairs]
        theirs = shown_at("teacher", teacher, [pair.teacher for pair in every])
        ours = shown_at("student", student, [pair.student for pair in every])
        self.pairs: dict[str, tuple[Pair, ...]] = {}
        self.layers = nn.ModuleDict()
        for name, term in self.terms.items():
            pairs, layers = [], []
            for pair in pairs_of[name]:
                target, source = theirs[pair.teacher], ours[pair.student]
                # Stages without feature maps are left out; at a place that the user names they are an error.
                if isinstance(term, AttentionTerm) and term.at == "stages" and not target.dim() == source.dim() == 4:
                    continue
                pairs.append(pair)
                layers.append(_layer(name, term, pair, target, source))
            if not pairs:
                raise ConfigError(
                    f"distill.transfer: {name} finds no two feature maps to compare in these networks; name places "
                    "(at), or take another term"
                )
            self.pairs[name] = tuple(pairs)
            self.layers[name] = nn.ModuleList(layers)

    @property
    def teacher_places(self) -> tuple[str, ...]:
        """Module paths of the teacher whose features are compared."""
        return tuple(dict.fromkeys(pair.teacher for pairs in self.pairs.values() for pair in pairs))

    @property
    def student_places(self) -> tuple[str, ...]:
        """Module paths of the student whose features are compared."""
        return tuple(dict.fromkeys(pair.student for pairs in self.pairs.values() for pair in pairs))

    def forward(
        self, teacher: Mapping[str, Tensor], student: Mapping[str, Tensor], step: int, weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The unweighted terms.

        Args:
            teacher: the teacher's features by module path, without gradient.
            student: the student's features of the same images by module path.
            step: of the student; it decides the random directions.
            weights: importance weights `[N]` of the images, or None for ones. Terms that compare images with each other
                or distributions ignore them.

        Returns:
            Scalars by name.
        """
        results = {}
        for name, term in self.terms.items():
            # Mixed precision gives features in half precision, too coarse for the sums of squares in these losses.
            theirs = [teacher[pair.teacher].float() for pair in self.pairs[name]]
            ours = [student[pair.student].float() for pair in self.pairs[name]]
            layers = self.layers[name]
            assert isinstance(layers, nn.ModuleList)
            if isinstance(term, AlignmentTerm):
                ours = [layer(positions(features)) for layer, features in zip(layers, ours, strict=True)]
                distance = sinkhorn_wasserstein
                if term.distance == "sliced":
                    # New directions at every step, as a function of it: a resumed run draws the same ones.
                    rng = stream(self._seed, "alignment", step)
                    distance = partial(sliced_wasserstein, rng=rng)
                results[name] = heterogeneous_alignment(theirs, ours, distance, relative=True)
                continue
            losses = [_loss(term, *three, weights) for three in zip(layers, theirs, ours, strict=True)]
            results[name] = torch.stack(losses).mean()
        return results


def shown_at(whose: str, model: Classifier, places: Sequence[str]) -> Mapping[str, Tensor]:
    """Features of a blank image at the places that a recipe names.

    Args:
        whose: "teacher" or "student", for the error.
        model: the network.
        places: module paths.

    Returns:
        Features of one image by module path.

    Raises:
        ModelError: a module path that the model does not have.
    """
    try:
        return blank_features(model, places)
    except ModelError as error:
        raise ModelError(f"distill.transfer: at of the {whose}: {error}") from error


def _loss(term: FeatureTerm, layer: nn.Module, target: Tensor, source: Tensor, weights: Tensor | None) -> Tensor:
    if isinstance(term, AttentionTerm):
        return attention_transfer(target, source, form=term.form, weights=weights)
    if isinstance(term, RelationTerm):
        return RELATIONS[term.kind](target, source)
    if isinstance(term, AdapterTerm):
        target = no_finer(target, source)
        return hint(target, layer(target, source), weights)
    # A hint of maps at the coarser resolution of the two, since upsampling would invent positions.
    if target.dim() == 4 and target.shape[2:] != source.shape[2:]:
        size = (min(target.shape[2], source.shape[2]), min(target.shape[3], source.shape[3]))
        target, source = F.adaptive_avg_pool2d(target, size), F.adaptive_avg_pool2d(source, size)
    return hint(target, layer(source), weights)


def _layer(name: str, term: FeatureTerm, pair: Pair, target: Tensor, source: Tensor) -> nn.Module:
    """The layer that maps the student's features to the form of the teacher's; the identity if a term needs none."""
    theirs, ours = (features.shape[1] if features.dim() == 4 else features.shape[-1] for features in (target, source))
    if isinstance(term, AdapterTerm):
        return ArchitectureAdapter(theirs, ours, term.content)
    if isinstance(term, AlignmentTerm):
        return nn.Linear(ours, theirs)
    shapes = (
        f"the teacher's {pair.teacher} gives {list(target.shape[1:])} for an image, the student's {pair.student} "
        f"{list(source.shape[1:])}"
    )
    if isinstance(term, AttentionTerm) and not target.dim() == source.dim() == 4:
        raise ConfigError(
            f"distill.transfer: {name} compares feature maps, and {shapes}; name other places (at), or take kind "
            "adapter"
        )
    if not isinstance(term, HintTerm):
        return nn.Identity()
    # Tokens must correspond one to one; maps are brought to one resolution (`_loss`).
    if target.dim() != source.dim() or (target.dim() == 3 and target.shape[1] != source.shape[1]):
        raise ConfigError(f"distill: {name}: {shapes}; for such a pair take distill.transfer, kind adapter")
    # A 1x1 convolution maps the channels of each position alike and moves nothing.
    layer = nn.Conv2d(ours, theirs, 1) if target.dim() == 4 else nn.Linear(ours, theirs)
    if ours == theirs:
        _begin_as_identity(layer, term.weight)
    return layer


def _begin_as_identity(layer: nn.Conv2d | nn.Linear, weight: Schedule) -> None:
    """A student that starts with its teacher's weights has features near the teacher's.

    Such a layer has little to learn, so the weight of the term, at its peak, moves it like weight 1.
    """
    assert layer.bias is not None
    with torch.no_grad():
        layer.bias.zero_()
        layer.weight.copy_(torch.eye(len(layer.weight)).view_as(layer.weight))
    factor = 1.0 / max(1.0, peak(weight))
    for parameter in layer.parameters():
        parameter.register_hook(lambda gradient: factor * gradient)


def _pairs(term: FeatureTerm, teacher: Classifier, student: Classifier) -> list[Pair]:
    """The places that a term compares."""
    if not isinstance(term.at, str):
        return [Pair(*places) for places in term.at]
    last = [head(model) + INPUT for model in (teacher, student)]
    if term.at == "penultimate":
        return [Pair(*last)]
    places_of = [list(stages(model)) for model in (teacher, student)]
    if isinstance(term, HintTerm):
        places_of = [[*places, end] for places, end in zip(places_of, last, strict=True)]
    count = min(map(len, places_of))
    if not count:
        raise ConfigError(
            f"distill.transfer: {term.kind} at stages: one of the networks has no stage that is found; name places (at)"
        )
    # Counted from the end: the last stages correspond best where networks have different numbers of stages.
    return [Pair(*both) for both in zip(*(places[-count:] for places in places_of), strict=True)]
