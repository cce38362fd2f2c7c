"""Settings of real data, augmentation, the memory bank and mixtures of images. Nothing here imports torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from synthkd.settings.base import BelowOne, Fraction, Images, NonNegative, PathText, Settings, Shift, Side

Tested = Annotated[float, Field(gt=0.0, le=1.0)] | None
"""Fraction of a dataset that is tested on."""
Crop = Annotated[float, Field(ge=0.01, le=1.0)]
"""Smallest share of an image that a random window keeps."""


class _Data(Settings):
    holdout: BelowOne = 0.1
    """Fraction of the training split that is held out, stratified by class; nothing trains on it."""
    split_seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] = 0
    """Seed of the split. It is separate from the run's seed, so that all runs share one split."""
    per_class: Images | None = None
    """Largest number of training images of each class, drawn by the split's seed; None: all are used."""
    channels: Literal[1, 3] | None = None
    """Convert the images to grey (1) or RGB (3); None: as they are, 3 in kind folder. Grey images fit a network of
    either number without it."""
    half: Literal["first", "second"] | None = None
    """Use only this half of the images outside of the test split. The halves share no image and are stratified by
    class: a teacher that was trained on the first has not seen what its student learns from in the second."""


class DigitsData(_Data):
    """The 1,797 handwritten digits of 8x8 pixels that are part of scikit-learn. A fifth is the test split."""

    kind: Literal["digits"]


class NamedData(_Data):
    """A dataset of torchvision by name.

    The files of Fashion-MNIST may also be those of Debian's package `dataset-fashion-mnist`.
    """

    kind: Literal["mnist", "fashion_mnist", "cifar10", "cifar100"]
    """Name of the dataset."""
    root: PathText
    """Folder of the files; with `download` they are written there."""
    download: bool = False
    """Download the files if they are missing."""


class ImageFileSettings(Settings):
    """How image files are read, and where their pixels are kept."""

    size: Side | tuple[Side, Side] | None = None
    """Height and width that the centre of each image is cut to, or the side of a square. Without `resize` it is the
    largest centre of this shape, resized; after `resize` these pixels are cut out. Needed if the sizes differ."""
    resize: Side | tuple[Side, Side] | None = None
    """Resize each image so that its shorter side has this many pixels (as torchvision's Resize does), or to this height
    and width whatever its shape. `size` then cuts out the centre; without `size` nothing is cut off."""
    skip_bad: bool = False
    """Skip unreadable files, with their number in the log, instead of refusing the folder."""
    memory: NonNegative = 2.0
    """Decoded images of more than this many GB are not kept in memory. They are decoded when they are needed, and then
    read from `cache`."""
    cache: PathText | None = None
    """Folder for decoded images that are not in memory, and for names and labels of the images in tars. It may be
    deleted when no run uses it. None: `~/.cache/synthkd/images`."""
    workers: Annotated[int, Field(ge=0, le=64)] | None = None
    """Processes that decode images ahead of a training, if the images are not in memory. None: one for each core, at
    most 4."""

    @model_validator(mode="after")
    def _crop_fits(self) -> ImageFileSettings:
        if self.size is not None and self.resize is not None:
            height, width = self.size if isinstance(self.size, tuple) else (self.size, self.size)
            resized = self.resize if isinstance(self.resize, tuple) else (self.resize, self.resize)
            if height > resized[0] or width > resized[1]:
                raise ValueError("size is cut out of what resize leaves: make it smaller, or resize larger")
        return self


class _Folder(_Data, ImageFileSettings):
    kind: Literal["folder"]
    root: PathText
    """The folder, archive, table or parquet file, or the run of `synthkd generate`; `shard-*.tar`, or
    `shard-{0000..0099}.tar`, names several."""
    channels: Literal[1, 3] = 3
    """Convert the images to grey (1) or RGB (3). Grey images fit a network of either number."""


class FolderData(_Folder):
    """Image files with their classes: a directory for each, in a folder, .zip or .tar; or labels beside the images.

    The latter are a WebDataset .tar, a .csv of files and labels, a .parquet, and what `synthkd generate` wrote. A
    folder's `train/` and `test/` are the splits.
    """

    test: BelowOne = 0.2
    """Fraction used as test split if there is no `test/`."""


class FolderTest(_Folder):
    """Image files as in kind folder of training data."""

    test: Tested = None
    """Fraction that is tested on if there is no `test/`. None: all images; or, of a dataset that the run trains on, the
    test split that its training leaves out."""


class _Npz(_Data):
    kind: Literal["npz"]
    path: PathText
    """The file."""


class NpzData(_Npz):
    """A .npz file with `images` (uint8 or float in [0, 1]; NHW, NHWC or NCHW) and `labels`.

    If it has `test_images` and `test_labels`, they are the test split.
    """

    test: BelowOne = 0.2
    """Fraction used as test split if the file has no `test_images`."""


class NpzTest(_Npz):
    """A .npz file as in kind npz of training data."""

    test: Tested = None
    """Fraction that is tested on if the file has no `test_images`; None as in kind folder."""


DataSettings = Annotated[DigitsData | NamedData | FolderData | NpzData, Field(discriminator="kind")]


def _to_test_on(value: object) -> object:
    """Settings of training data that a caller gives in Python for test data: the same test split."""
    if isinstance(value, FolderData | NpzData):
        same = value.model_dump(exclude=set(_OF_TRAINING))
        return (FolderTest if isinstance(value, FolderData) else NpzTest)(**same)
    return value


AnyData = TypeVar("AnyData", bound=_Data)

_OF_TRAINING = ("half", "per_class")
"""Keys that choose among the images that are trained on."""


def require_whole(settings: AnyData) -> AnyData:
    """Refuse keys of images that are tested on which choose among those that are trained on, and return the settings.

    Raises:
        ValueError: the refusal, with the key.
    """
    for key in _OF_TRAINING:
        if getattr(settings, key) is not None:
            raise ValueError(f"{key} chooses among images that are trained on, and these are tested on: leave it out")
    return settings


TestSettings = Annotated[
    Annotated[DigitsData | NamedData | FolderTest | NpzTest, Field(discriminator="kind")],
    BeforeValidator(_to_test_on),
    AfterValidator(require_whole),
]
"""Real images that are only tested on."""


class StreamData(Settings):
    """Real images that arrive while a student learns: .npz files that somebody puts into a folder, one after another.

    A file has `images` as in kind npz, and may have `labels`, which are numbers of the teacher's classes. New files are
    taken in the order of their names (as text: 002 comes before 010). A file must not change later. While it is being
    written, its name must begin with a dot or end in .tmp or .partial, with or without .npz after that.
    """

    RETIRED: ClassVar = {"poll": 1.0}

    kind: Literal["stream"]
    path: PathText
    """The folder. It must exist; files may come later."""
    window: Images = 10_000
    """Batches draw from this many images: the newest of those that are not held out."""
    channels: Literal[1, 3] | None = None
    """As in kind npz."""
    patience: NonNegative = 60.0
    """Seconds that a run waits for its first image before it gives up. Later it continues with the images it has."""
    holdout: BelowOne = 0.1
    """Share of the images that are held out. The name of its file and its row decide about each image."""


class UnlabelledData(ImageFileSettings):
    """Pictures of the task without labels, all in one place or not: a student learns what its teacher says of them.

    They may be in any form of images, also one with labels, which are left aside. Of a set with a directory `train`
    the images in it are taken, and of a .npz `images`.
    """

    kind: Literal["unlabelled"]
    path: PathText
    """The folder, archive, table, parquet file, .npz or .npy."""
    channels: Literal[1, 3] = 3
    """Convert the images to grey (1) or RGB (3). Grey images fit a network of either number."""
    holdout: BelowOne = 0.1
    """Share of the images that are held out; the same ones in every run over these images."""


DataOrStream = Annotated[
    DigitsData | NamedData | FolderData | NpzData | StreamData | UnlabelledData,
    Field(discriminator="kind"),
]
"""Real images that a student may learn from. Only a student can learn from a stream, because it has no splits, and from
unlabelled images, because a teacher labels them."""


class AugmentSettings(Settings):
    """Augmentation of real images while a teacher trains, drawn for each image."""

    RETIRED: ClassVar = {"erase": 0.0}

    shift: Shift = 0
    """Largest shift in pixels, in both directions; vacated pixels are zero."""
    flip: bool = False
    """Horizontal flip with probability one half."""
    crop: Crop = 1.0
    """Smallest share of the image that a random window keeps, which is resized to the image's size; 1: no crops."""


class ReplaySettings(Settings):
    """How images are drawn from a memory bank."""

    policy: Literal["fifo", "prioritized", "class_balanced"] = "fifo"
    """fifo: uniformly. prioritized: in proportion to priority. class_balanced: each class equally often."""
    priority_exponent: Fraction = 0.4
    """Exponent of the priority in the probability of a draw (prioritized)."""
    importance_exponent: Fraction = 1.0
    """Exponent of the importance weights that correct the bias of prioritized draws; 1 corrects it fully, but for the
    second images of mixtures.

    The weights apply to every term that is a mean over images, not to relations between images or distances of
    distributions."""


class BankSettings(ReplaySettings):
    """The memory bank of generated images."""

    capacity: Images = 20_000
    """Largest number of images; after that each new one takes the place of another."""
    evict: Literal["oldest", "lowest_priority"] = "oldest"
    """Which images leave a full bank. lowest_priority needs policy prioritized; of equal priorities the oldest leaves.
    Each checkpoint of a bank in memory then writes the whole bank, where with oldest it writes the new images alone."""
    storage: Literal["ram", "disk"] = "ram"
    """disk: in files inside the run directory, which checkpoints share; for a bank that is larger than the memory."""

    @model_validator(mode="after")
    def _has_priorities(self) -> BankSettings:
        # With exponent 0 every image has the weight 1, so priorities would order nothing.
        if self.evict == "lowest_priority" and (self.policy != "prioritized" or not self.priority_exponent):
            raise ValueError(
                "evict: lowest_priority needs priorities: set policy to prioritized and priority_exponent above 0, or "
                "evict to oldest"
            )
        return self


class MixSettings(Settings):
    """How the images of a batch are labelled and varied."""

    logits: Literal["fresh", "stored"] | None = None
    """fresh: the teacher labels exactly the images that the student gets. stored: the logits that were stored with the
    images, without running the teacher; flips and shifts keep them, mixup mixes them. None: fresh if there is a
    teacher."""
    mixup: Fraction = 0.5
    """Share of the batch that is replaced by convex mixtures of two of its images."""
    cutmix: Fraction = 0.0
    """Share of the batch into which a rectangle of another image is pasted (fresh logits only)."""
    flip: bool = False
    """Horizontal flip with probability one half."""
    shift: Shift = 0
    """Largest shift in pixels, in both directions."""
    crop: Crop = 1.0
    """Smallest share of the image that a random window keeps, which is resized to the image's size (fresh logits only);
    1: no crops."""

    @model_validator(mode="after")
    def _possible(self) -> MixSettings:
        if self.logits == "stored" and self.crop < 1.0:
            raise ValueError("stored logits are those of whole images: set crop to 1, or logits to fresh")
        if self.logits == "stored" and self.cutmix:
            raise ValueError("stored logits do not know a pasted rectangle: set cutmix to 0, or logits to fresh")
        if self.mixup + self.cutmix > 1.0:
            raise ValueError("mixup + cutmix must not exceed 1")
        return self
