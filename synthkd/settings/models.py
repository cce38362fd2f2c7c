"""Networks: of the zoo, or from elsewhere; and a student whose width changes. Nothing here imports torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Tag, model_validator

from synthkd.settings.base import (
    Channels,
    Classes,
    Depth,
    Fraction,
    Listed,
    NonNegative,
    Number,
    PerClass,
    Settings,
    Side,
    Units,
    by_kind,
)

Architecture = Literal["mlp", "lenet5", "convnet", "resnet", "wide_resnet", "slim", "vit"]


class ZooModel(Settings):
    """A network of the built-in zoo, freshly initialised for the images and classes at hand."""

    kind: Literal["zoo"] = "zoo"
    arch: Architecture
    width: Units | None = None
    """Base width; None takes the architecture's own default."""
    depth: Depth | None = None
    """Depth in the architecture's own unit (see `synthkd.models.zoo`); None takes its default."""
    norm: Literal["batch", "group"] = "batch"
    """group: GroupNorm in the place of every BatchNorm, so that no image sees the others of its batch (needed for
    DP-SGD)."""
    activation: Literal["relu", "tanh"] = "relu"
    """tanh in the place of every ReLU: bounded activations lose less to the noise of DP-SGD (Papernot et al. 2021)."""


class LoadedModel(Settings):
    """A model from elsewhere.

    `model` is a directory that synthkd saved, `torchvision:NAME`, `timm:NAME` or `package.module:function`.
    """

    kind: Literal["load"]
    model: str
    weights: str | None = None
    """A local .safetensors file, or a .pt/.pth state dict that loads with `weights_only=True`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the factory."""
    channels: Channels | None = None
    """Channels of its images; None: as the job or the saved directory has them, else 3."""
    size: Side | tuple[Side, Side] | None = None
    """Height and width of its images; needed for anything but a directory that synthkd saved."""
    classes: Classes | None = None
    """Number of classes; needed for anything but a directory that synthkd saved."""
    mean: Annotated[tuple[Number, ...], Listed] | None = None
    """Per-channel mean that the network expects to be subtracted from images in [0, 1]; None: it normalises itself."""
    std: Annotated[tuple[Number, ...], Listed] | None = None
    class_names: Annotated[tuple[str, ...], PerClass] | None = None


ModelSettings = Annotated[Annotated[ZooModel, Tag("zoo")] | Annotated[LoadedModel, Tag("load")], by_kind("zoo")]

WIDEST = 64.0
"""Of a width that grows while a student trains, over the one in its settings."""


class WidthSettings(Settings):
    """How the width of a student changes while it trains."""

    start: Annotated[float, Field(ge=1.0, le=WIDEST)] = 1.5
    """First coefficient: the width over that of the student's settings."""
    most: Annotated[float, Field(ge=1.0, le=WIDEST)] = 2.0
    """Largest coefficient."""
    gamma: NonNegative = 1.0
    """Weight of the penalty: as much loss as a whole base width must save to be kept."""
    alpha: NonNegative = 1.0
    """How much a growing gradient lessens the penalty."""
    beta: NonNegative = 10.0
    """How much a similarity below the one aimed at lessens it."""
    similarity: Fraction = 0.9
    """Similarity to the teacher that is aimed at."""
    decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Of the short moving averages; the long one of the gradient forgets ten times as slowly."""

    @model_validator(mode="after")
    def _ordered(self) -> WidthSettings:
        if self.start > self.most:
            raise ValueError("start must not be above most")
        return self
