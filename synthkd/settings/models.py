"""Networks of the zoo and from elsewhere, and a student of changing width. Nothing here imports torch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, Tag, model_validator
from pydantic.json_schema import SkipJsonSchema

from synthkd.settings.base import (
    Channels,
    Classes,
    Depth,
    Fraction,
    Listed,
    NonNegative,
    Number,
    PathText,
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
    """Architecture."""
    width: Units | None = None
    """Base width; None: the architecture's own default."""
    depth: Depth | None = None
    """Depth in the architecture's own unit (see `synthkd.models.zoo`); None: its default."""
    norm: Literal["batch", "group"] = "batch"
    """group: GroupNorm in place of BatchNorm, so that the output for an image does not depend on the rest of its batch
    (required by DP-SGD)."""
    activation: Literal["relu", "tanh"] = "relu"
    """tanh in place of ReLU: bounded activations lose less accuracy to the noise of DP-SGD (Papernot et al. 2021)."""
    shortcut: Literal["projection", "pad"] = "projection"
    """Shortcut of a resnet where its maps change: a 1x1 convolution, or without parameters every second pixel and zeros
    for new channels (option A of He et al. 2015), as in the public ResNet-20 to 110 of CIFAR-10."""

    @model_validator(mode="after")
    def _has_shortcut(self) -> ZooModel:
        if self.shortcut == "pad" and self.arch != "resnet":
            raise ValueError(f"shortcut: arch {self.arch} has no such shortcut: leave it out, or set arch to resnet")
        return self


LARGEST_MOMENT = 1.5
"""A mean or deviation above it is not of images in [0, 1]."""


def _divided(values: tuple[float, ...]) -> str:
    """Numbers of images in 0 to 255 as those of images in [0, 1], as a recipe has them."""
    return f"[{', '.join(f'{value / 255:.4g}' for value in values)}]"


class LoadedModel(Settings):
    """A model from elsewhere.

    `model` is a directory that synthkd saved, `zoo:ARCH`, `torchvision:NAME`, `timm:NAME` or `package.module:function`.
    """

    kind: Literal["load"]
    model: PathText
    """A directory that synthkd saved, a file or a folder with a network, or the name of one, see above."""
    weights: PathText | None = None
    """A local file with a state dict, whatever its ending: safetensors, or what torch.save wrote."""
    weights_key: str | None = None
    """Key of the state dict inside that file, e.g. `ema`; None: the one that fits."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the factory; of `zoo:ARCH` the keys of an `arch` (width, depth, shortcut, ...)."""
    channels: Channels | None = None
    """Channels of its images; None: those of the job or of the saved directory, else 3."""
    size: Side | tuple[Side, Side] | None = None
    """Height and width of its images; required except for a directory that synthkd saved."""
    classes: Classes | None = None
    """Number of classes; required except for a directory that synthkd saved."""
    mean: Annotated[tuple[Number, ...], Listed] | None = None
    """Mean per channel to subtract from images in [0, 1]; None: the network normalises its input itself. But a
    network to train without `weights` gets the mean and std of its teacher or data then; if it normalises its input
    itself, write a 0 for each channel here, and a 1 in `std`."""
    std: Annotated[tuple[Number, ...], Listed] | None = None
    """Standard deviation per channel to divide by; given with `mean`, or neither."""
    class_names: Annotated[tuple[str, ...], PerClass] | None = None
    """Names of the classes in the order of the logits, for reports and students."""
    untrained: bool = False
    """Take a teacher without weights as it is initialised, which is refused otherwise."""

    @model_validator(mode="after")
    def _normalises_images_in_0_to_1(self) -> LoadedModel:
        if self.mean is not None and self.std is not None:
            if max((*self.mean, *self.std), default=0.0) > LARGEST_MOMENT:
                raise ValueError(
                    "mean, std: they are of images in 0 to 255, and images are in 0 to 1 here: divide both by 255 and "
                    f"write mean: {_divided(self.mean)}, std: {_divided(self.std)}"
                )
        elif (self.mean is None) != (self.std is None):
            given, other = ("std", "mean") if self.mean is None else ("mean", "std")
            raise ValueError(
                f"{other}: it is missing beside {given}: write both as in the training of the network, or neither if "
                "it normalises itself"
            )
        if self.untrained and self.weights is not None:
            raise ValueError(f"untrained: there are weights, {self.weights}: leave one of the two out")
        return self


class GivenModel(Settings):
    """A network that the caller of a Python function gives in memory. It has no name, so no recipe can ask for it."""

    kind: Literal["given"]
    model: str
    """The name of its class."""
    sha256: str
    """Of its weights, images and classes, by which a run knows that it goes on with the same network."""
    channels: Channels | None = Field(default=None, exclude=True)
    size: tuple[Side, Side] | None = Field(default=None, exclude=True)
    """Height and width of its images. Defaults go by these two; not recorded, since `sha256` stands for them."""


ModelSettings = Annotated[Annotated[ZooModel, Tag("zoo")] | Annotated[LoadedModel, Tag("load")], by_kind("zoo")]
ModelOrGiven = Annotated[
    Annotated[ZooModel, Tag("zoo")]
    | Annotated[LoadedModel, Tag("load")]
    | Annotated[SkipJsonSchema[GivenModel], Tag("given")],
    by_kind("zoo"),
]
"""The schema of recipes does not have the kind `given`: what is in memory cannot be written into one."""

WIDEST = 64.0
"""Largest width coefficient: the width over the one in the student's settings."""


class WidthSettings(Settings):
    """How the width of a student changes while it trains."""

    RETIRED: ClassVar = {"decay": 0.9}

    start: Annotated[float, Field(ge=1.0, le=WIDEST)] = 1.5
    """First width coefficient: the width over the one in the student's settings."""
    most: Annotated[float, Field(ge=1.0, le=WIDEST)] = 2.0
    """Largest width coefficient."""
    gamma: NonNegative = 1.0
    """Weight of the penalty on width: the decrease of the loss that one more base width is worth."""
    alpha: NonNegative = 1.0
    """How much a growing gradient reduces the penalty."""
    beta: NonNegative = 10.0
    """How much a similarity below the target reduces the penalty."""
    similarity: Fraction = 0.9
    """Target of the similarity to the teacher."""
    measure: Literal["agreement", "features"] = "agreement"
    """The similarity S_t. agreement: share of the batch in which both predict the same class. features: linear CKA of
    their penultimate features on the batch (`synthkd.losses.linear_cka`)."""

    @model_validator(mode="after")
    def _ordered(self) -> WidthSettings:
        if self.start > self.most:
            raise ValueError("start must not be above most")
        return self
