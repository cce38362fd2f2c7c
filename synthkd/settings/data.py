"""Real data, how images are varied, the memory bank and the shares of a batch. Nothing here imports torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from synthkd.settings.base import Fraction, Images, NonNegative, Positive, Settings, Shift, Side


class _Data(Settings):
    holdout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Fraction of the training split set aside, stratified; nothing ever trains on it."""
    split_seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] = 0
    """Seed of the split, separate from the run's seed so that all runs share one split."""
    per_class: Images | None = None
    """Use at most this many training images of each class, drawn by the split's seed; None: all."""


class DigitsData(_Data):
    """scikit-learn's 1,797 handwritten digits, 8x8, inside its wheel. A fifth is the test split."""

    kind: Literal["digits"]


class NamedData(_Data):
    """A dataset of torchvision by name. Fashion-MNIST may also be the folder of Debian's `dataset-fashion-mnist`."""

    kind: Literal["mnist", "fashion_mnist", "cifar10", "cifar100"]
    root: str
    """Folder that holds the files (or receives them, with `download`)."""
    download: bool = False
    """Fetch the files when they are missing; never done unasked."""


class FolderData(_Data):
    """An image folder or a .zip of one, a directory per class, or a WebDataset .tar with its labels.

    With `train/` and `test/` inside they are the splits.
    """

    kind: Literal["folder"]
    root: str
    """The folder, .zip or .tar; `shard-*.tar` names several."""
    channels: Literal[1, 3] = 3
    size: Side | None = None
    """Images are resized (shorter side, then centre crop) to this many pixels; needed where sizes differ."""
    test: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """Fraction used as test split where there is no `test/`."""
    skip_bad: bool = False
    """Leave unreadable files out, counted in the log, instead of refusing the folder."""


class NpzData(_Data):
    """A .npz file with `images` (uint8 or float in [0, 1]; NHW, NHWC or NCHW) and `labels`.

    With `test_images` and `test_labels` inside they are the test split.
    """

    kind: Literal["npz"]
    path: str
    test: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """Fraction used as test split when the file has no `test_images`."""


DataSettings = Annotated[DigitsData | NamedData | FolderData | NpzData, Field(discriminator="kind")]


class StreamData(Settings):
    """Real images that arrive while a student learns: .npz files that somebody puts into a folder, one after another.

    A file has `images` as of kind npz, and `labels`, numbers of the teacher's classes, or none. New files are taken in
    the order of their names (as text: 002 comes before 010), and no file changes later. While one is being written its
    name begins with a dot or ends in .tmp or .partial, with or without .npz after that.
    """

    kind: Literal["stream"]
    path: str
    """The folder, which exists; files may come later."""
    window: Images = 10_000
    """Batches draw from so many images, the newest of those that are not held out."""
    poll: Positive = 1.0
    """Seconds, at least, between two checks for new files."""
    patience: NonNegative = 60.0
    """Seconds that a run waits for its first image before it gives up; later it goes on with what it has."""
    holdout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Share of the images that nothing trains on, drawn for each by the name of its file and its row alone."""


DataOrStream = Annotated[
    DigitsData | NamedData | FolderData | NpzData | StreamData,
    Field(discriminator="kind"),
]
"""What a student may learn from. A stream has no parts to train and to test on, so all else takes `DataSettings`."""


class AugmentSettings(Settings):
    """Augmentation of real images while a teacher trains; per sample."""

    shift: Shift = 0
    """Largest shift in pixels, both ways; vacated pixels are zero."""
    flip: bool = False
    """Horizontal flip with probability one half."""
    erase: Fraction = 0.0
    """Probability of erasing one random rectangle."""


class ReplaySettings(Settings):
    """How images are drawn from a memory bank."""

    policy: Literal["fifo", "prioritized", "class_balanced"] = "fifo"
    """Uniformly, in proportion to priority, or each class equally often."""
    priority_exponent: Fraction = 0.4
    """Exponent of the priority in the probability of a draw (prioritized)."""
    importance_exponent: Fraction = 1.0
    """Exponent of the importance weights that undo the bias of prioritized draws; 1 undoes it wholly.

    They count in every term that is a mean over images; relations between images and distances of distributions are
    those of the batch as it was drawn."""


class BankSettings(ReplaySettings):
    """The memory bank of generated images."""

    capacity: Images = 20_000
    storage: Literal["ram", "disk"] = "ram"
    """disk keeps the arrays in memory-mapped files inside the run directory."""


class MixSettings(Settings):
    """How the images of a batch are labelled and varied."""

    logits: Literal["fresh", "stored"] | None = None
    """fresh: the teacher sees the very images the student sees. stored: the logits that were stored with the images, no
    teacher pass; flips and shifts keep them, mixup mixes them. None: fresh where there is a teacher."""
    mixup: Fraction = 0.5
    """Share of the batch replaced by convex mixtures of two of its images."""
    cutmix: Fraction = 0.0
    """Share of the batch in which a rectangle of another image is pasted (fresh logits only)."""
    flip: bool = False
    """Horizontal flips."""
    shift: Shift = 0
    """Largest shift in pixels."""

    @model_validator(mode="after")
    def _possible(self) -> MixSettings:
        if self.logits == "stored" and self.cutmix:
            raise ValueError("stored logits do not say what a pasted rectangle shows: set cutmix to 0, or logits fresh")
        if self.mixup + self.cutmix > 1.0:
            raise ValueError("mixup + cutmix must not exceed 1")
        return self
