"""Settings of the transfer set: the images that a student learns from, from one source or several.

A transfer set is the set of images whose soft labels a student learns (Hinton et al. 2015).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PrivateAttr, Tag, model_validator

from synthkd.generators.settings import (
    FROM_REAL,
    ChosenByTeacher,
    GeneratorOrAuto,
    GeneratorSettings,
    TeacherAccess,
    access_of,
)
from synthkd.settings import (
    BankSettings,
    Count,
    DataOrStream,
    DataSettings,
    DifficultySettings,
    PathText,
    ReplaySettings,
    Settings,
    Share,
    StreamData,
    UnlabelledData,
    by_kind,
)


class _Source(Settings):
    share: Share | None = None
    """Share of each batch. One source of a list has no share and fills the rest."""

    @property
    def needs(self) -> frozenset[TeacherAccess]:
        """What its images need of a teacher; nothing where they are labelled without one."""
        return frozenset()


class GeneratedSet(_Source):
    """Images that a generator generates while the student learns; a memory bank keeps them."""

    kind: Literal["generated"] = "generated"
    generator: GeneratorOrAuto = ChosenByTeacher(kind="auto")
    """Kind auto, the default: noisy_label or inversion for a teacher with BatchNorm statistics, by the images, pixels
    for one without, procedural for a black box. Keys without a kind are those of inversion."""
    data: DataSettings | None = None
    """Real images that cgan, diffusion and merf learn from. None: those of the real source of the list."""
    difficulty: DifficultySettings = DifficultySettings()
    bank: BankSettings = BankSettings()
    live: Share = 0.0
    """Share of each batch that are fresh samples, which are not stored; the rest is drawn from the bank."""
    _by_teacher: bool = PrivateAttr(default=False)

    def choose(self, generator: GeneratorSettings) -> GeneratedSet:
        """The same with the generator that the teacher has chosen, which `is_chosen` tells."""
        chosen = self.model_copy(update={"generator": generator})
        chosen._by_teacher = True
        return chosen

    @property
    def is_chosen(self) -> bool:
        """Whether the recipe names no generator."""
        return self._by_teacher or isinstance(self.generator, ChosenByTeacher)

    def generator_key(self, name: str, place: str) -> str:
        """A key of the generator in words, for an error that advises it.

        Args:
            name: of the key.
            place: key of the source, e.g. "transfer_set" or "transfer_set.0".
        """
        # Keys of a generator without its kind are those of another one, with other defaults.
        return f"{place}.generator.{name}" + (f" (with {place}.generator.kind=auto)" if self.is_chosen else "")

    @property
    def needs(self) -> frozenset[TeacherAccess]:
        """What the generator needs, and the logits of its images."""
        return access_of(self.generator)

    @property
    def named(self) -> GeneratorSettings:
        """The generator, once the teacher has chosen it (`synthkd.pipelines.student.chosen`)."""
        assert not isinstance(self.generator, ChosenByTeacher)
        return self.generator

    @property
    def learns_from_data(self) -> bool:
        """Whether the generator learns from real images."""
        return isinstance(self.generator, FROM_REAL)

    @model_validator(mode="after")
    def _has_its_data(self) -> GeneratedSet:
        if self.data is not None and not self.learns_from_data:
            chosen = isinstance(self.generator, ChosenByTeacher)
            which = "a generator that the teacher chooses" if chosen else f"the {self.generator.kind} generator"
            raise ValueError(
                f"data: {which} does not learn from real images: leave data out, or add a "
                "source of kind real to transfer_set"
            )
        return self


class StoredSet(_Source):
    """A dataset with soft labels: what `synthkd generate` wrote, or a .npz of images and logits."""

    kind: Literal["stored"]
    path: PathText
    """Its directory, the run that wrote it, or a .npz with `images` and `logits` (and `labels` and `class_names`)."""
    bank: ReplaySettings = ReplaySettings()
    """How its images are drawn."""

    @property
    def needs(self) -> frozenset[TeacherAccess]:
        """Nothing: the dataset has the soft labels of the teacher that it was generated with."""
        return frozenset()


class RealSet(_Source):
    """Real images: a dataset, unlabelled images, or a stream of images that arrive while the student learns."""

    kind: Literal["real"]
    data: DataOrStream
    """Where the images are."""

    @property
    def needs(self) -> frozenset[TeacherAccess]:
        """The labels of unlabelled images, and of a stream, which does not know its classes; else nothing."""
        return frozenset({"labels"}) if isinstance(self.data, StreamData | UnlabelledData) else frozenset()


class CollageSet(_Source):
    """Pictures that cost no gradient and show nothing of the task: crops of an album, distorted and put together."""

    pool: Count = 10_000
    """With stored logits: number of pictures, which the teacher labels once; a black box as many as its queries cover.
    With fresh logits every step has new ones."""
    balanced: bool = True
    """With stored logits: in a batch the classes that the teacher names are equally likely, however few pictures have
    one. Pictures that show nothing of the task are mostly taken for a few classes."""

    @property
    def needs(self) -> frozenset[TeacherAccess]:
        """Labels: nobody else knows what the pictures are."""
        return frozenset({"labels"})


class ProceduralSet(CollageSet):
    """An album of drawn pictures: noise of every spectrum, textures, shapes and figures."""

    kind: Literal["procedural"]


class PicturesSet(CollageSet):
    """An album of pictures of any kind and size, which need not show what the task is about."""

    kind: Literal["pictures"]
    root: PathText | None = None
    """A folder, or any other form of images; labels are left aside. None: the two photographs in scikit-learn."""


AnySet = GeneratedSet | StoredSet | RealSet | ProceduralSet | PicturesSet
"""One source of a transfer set."""

_OneSource = (
    Annotated[GeneratedSet, Tag("generated")]
    | Annotated[StoredSet, Tag("stored")]
    | Annotated[RealSet, Tag("real")]
    | Annotated[ProceduralSet, Tag("procedural")]
    | Annotated[PicturesSet, Tag("pictures")]
)

SourceSettings = Annotated[_OneSource, by_kind("generated")]

TransferSetSettings = Annotated[
    _OneSource | Annotated[Annotated[tuple[SourceSettings, ...], Field(min_length=1, max_length=8)], Tag("list")],
    by_kind("generated"),
]
"""One source, or a list of them that share each batch."""


def sources_of(transfer_set: TransferSetSettings) -> tuple[AnySet, ...]:
    """The sources of a transfer set, one or several.

    Raises:
        ValueError: shares that leave none or more than one source for the rest, two sources of one kind, or generated
            beside stored images.
    """
    sources = transfer_set if isinstance(transfer_set, tuple) else (transfer_set,)
    if sum(source.share is None for source in sources) != 1:
        raise ValueError("transfer_set: one source has no share and fills the rest, each other one has a share")
    kinds = [source.kind for source in sources]
    if twice := [kind for kind in dict.fromkeys(kinds) if kinds.count(kind) > 1]:
        raise ValueError(f"transfer_set: there are two sources of kind {twice[0]}: leave one out")
    if {"generated", "stored"} <= set(kinds):  # a run has one memory bank, and the dataset fills all of it
        raise ValueError("transfer_set: generated and stored images need a memory bank each: leave one source out")
    return tuple(sources)
