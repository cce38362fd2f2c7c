"""The configuration of each generator, chosen by `kind:`. Nothing here imports torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Tag

from synthkd.settings import Count, Fraction, NonNegative, Positive, Settings, by_kind


class InversionSettings(Settings):
    """A generator network trained against the frozen teacher alone, one short round at a time."""

    kind: Literal["inversion"] = "inversion"
    latent: Count = 100
    """Dimensions of the latent vector."""
    width: Count = 16
    """Channels of the generator's last hidden layer; the layers before have multiples of it."""
    batch_size: Count = 64
    """Images a round makes."""
    steps: Count = 5
    """Optimiser steps a round takes."""
    lr: Positive = 5e-3
    """Learning rate of the network inside a round."""
    latent_lr: NonNegative = 1.5e-2
    """Learning rate of the latent vectors inside a round; 0 leaves them random."""
    batch_norm: NonNegative = 10.0
    """Weight of BatchNorm-statistics matching; 0 for a teacher without BatchNorm."""
    memory: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Weight of earlier rounds in the moments that are matched."""
    one_hot: NonNegative = 0.5
    """Weight of the teacher's cross-entropy to the asked label."""
    adversarial: NonNegative = 1.3
    """Weight, at difficulty 1, of the disagreement of student and teacher."""
    entropy: NonNegative = 0.0
    """Weight of the information entropy of the batch's mean prediction (balance of classes)."""
    activation: NonNegative = 0.0
    """Weight of the magnitude of the teacher's penultimate features."""


class PixelSettings(Settings):
    """Drawn images moved in pixel space to the teacher's classes; for teachers without BatchNorm."""

    kind: Literal["pixels"]
    batch_size: Count = 107
    """Images a round makes, the drawn ones included."""
    drawn: Fraction = 0.4
    """Share of a round's images that are kept as drawn."""
    restart: Fraction = 0.5
    """Share of the moved images that start from results of earlier rounds rather than from drawn images."""
    steps: Count = 4
    """Gradient steps that move an image."""
    step_size: Positive = 0.2
    """Size of a step, in units of the image's logit."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.7
    adversarial: NonNegative = 0.0
    """Weight, at difficulty 1, of the disagreement of student and teacher."""
    sample_steps: Count = 12
    """Gradient steps of an image that is asked for by its label."""


class PythonGenerator(Settings):
    """A generator of your own: `target` is a `package.module:function` called with teacher, seed and the options."""

    kind: Literal["python"]
    target: str
    options: dict[str, Any] = Field(default_factory=dict)


GeneratorSettings = Annotated[
    Annotated[InversionSettings, Tag("inversion")]
    | Annotated[PixelSettings, Tag("pixels")]
    | Annotated[PythonGenerator, Tag("python")],
    by_kind("inversion"),
]
