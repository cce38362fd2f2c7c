"""What a distillation may ask of a black box: its answer to each image, once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from synthkd.generators.settings import PythonGenerator, TeacherAccess
from synthkd.pipelines.config.transfer_set import AnySet, CollageSet, GeneratedSet, RealSet
from synthkd.settings import MixSettings, StreamData

ONLY_OF_NETWORKS: Mapping[TeacherAccess, str] = {"gradients": "gradients", "batch_norm": "BatchNorm statistics"}
"""What only a network gives, in words."""


def require_answers_alone(sources: Sequence[AnySet], mix: MixSettings) -> None:
    """Refuse sources and mixtures that need more of the teacher than one answer to each image.

    Args:
        sources: of the transfer set.
        mix: how batches are labelled and varied.

    Raises:
        ValueError: the refusal.
    """
    for source in sources:
        # A generator of kind python does not tell what it takes.
        tells = not (isinstance(source, GeneratedSet) and isinstance(source.generator, PythonGenerator))
        if tells and (more := [words for access, words in ONLY_OF_NETWORKS.items() if access in source.needs]):
            raise ValueError(
                f"transfer_set.generator: it needs {' and '.join(more)} of the teacher, and a black box gives answers "
                "alone: take kind procedural, or real or stored images"
            )
        if isinstance(source, GeneratedSet) and source.live != 0.0:
            raise ValueError("transfer_set.live: fresh samples ask a black box at every step: set live to 0")
        if isinstance(source, RealSet) and isinstance(source.data, StreamData):
            raise ValueError("transfer_set: a stream asks a black box without end: take another kind of data")
        if isinstance(source, CollageSet) and not all(isinstance(other, CollageSet) for other in sources):
            raise ValueError(
                f"transfer_set: {source.kind} would share the queries of a black box with images of another kind: take "
                "procedural and pictures alone"
            )
    if mix.logits == "fresh" or mix.cutmix or mix.crop < 1.0:
        raise ValueError(
            "mix: a black box is asked about each image once, not about its mixtures at every step: set mix.logits to "
            "stored, mix.cutmix to 0 and mix.crop to 1, or leave them out"
        )
