"""Saved generators: a folder with all that sampling needs, independent of the run and the real images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from synthkd.errors import ConfigError, ModelError
from synthkd.generators.method_settings import BatchwiseSettings, ContinuousSettings, NoisyLabelSettings
from synthkd.generators.settings import (
    FROM_REAL,
    GeneratorSettings,
    InversionSettings,
    PixelSettings,
    ProceduralSettings,
    SavedSettings,
)
from synthkd.models.files import SavedSpec
from synthkd.settings import Settings
from synthkd.settings.load import load_config
from synthkd.system.files import file_names, inside, sha256, write_atomically
from synthkd.system.sealed import sealed, unsealed
from synthkd.types import ImageSpec, SampleGenerator, Saveable

CONFIG = "generator.json"
INSIDE_A_RUN = "generator"
"""Folder of a run's saved generator inside the run's directory."""
SAMPLED = 64
"""Images of a round of a saved generator whose settings have no `batch_size`."""
MOVED_SAMPLES = (InversionSettings, NoisyLabelSettings, PixelSettings)
"""Settings of the generators whose samples are moved to their labels by the teacher's gradients."""
DATA_FREE = (InversionSettings, PixelSettings, ProceduralSettings, ContinuousSettings, BatchwiseSettings)
"""Settings of the generators that learn from no real image."""


class SavedGenerator(Settings):
    """The contents of generator.json.

    Attributes:
        format: version of the file.
        settings: settings of the generator, as in a configuration.
        spec: size and channels of its images, and number of classes.
        class_names: one per class, or empty.
        seed: seed of the run in which it was trained.
        real_images: number of real images it was trained on; None if that is unknown.
        files: path relative to the folder -> sha256, of every other file in it.
    """

    format: Literal[1] = 1
    settings: GeneratorSettings
    spec: SavedSpec
    class_names: tuple[str, ...] = ()
    seed: int
    real_images: int | None = 0
    files: dict[str, str] = Field(default_factory=dict)


def save_generator(
    generator: SampleGenerator,
    settings: GeneratorSettings,
    directory: Path,
    spec: ImageSpec,
    class_names: tuple[str, ...],
    seed: int,
    real_images: int | None,
) -> bool:
    """Save a generator, if it has the methods `save` and `restore`.

    Args:
        generator: the generator to save.
        settings: settings of the generator.
        directory: folder to save it to; created if it does not exist.
        spec: size and channels of its images, and number of classes.
        class_names: one per class, or empty.
        seed: the run's seed.
        real_images: number of real images it was trained on; None if that is unknown.

    Returns:
        Whether it was saved; a generator of kind `python` may lack the methods.
    """
    if not isinstance(generator, Saveable):
        return False
    # generator.json comes last, with the checksums of all: an interrupted save is not taken for a generator.
    directory.mkdir(parents=True, exist_ok=True)
    generator.save(directory)
    saved = SavedGenerator(
        settings=settings,
        spec=SavedSpec(**vars(spec)),
        class_names=class_names,
        seed=seed,
        real_images=real_images,
        files={name: sha256(directory / name) for name in file_names(directory) if name != CONFIG},
    )
    write_atomically(directory / CONFIG, sealed(saved.model_dump(mode="json")))
    return True


def read_saved(path: Path | str) -> tuple[SavedGenerator, Path]:
    """Read the description of a saved generator and verify its files.

    Args:
        path: its directory, or that of the run that saved it.

    Returns:
        The contents of generator.json, and the generator's directory.

    Raises:
        ModelError: there is no generator, or a file is missing or damaged.
    """
    path = Path(path).expanduser()
    directory = next((d for d in (path, path / INSIDE_A_RUN) if (d / CONFIG).is_file()), None)
    if directory is None:
        raise ModelError(f"{path} has no {CONFIG}, nor {INSIDE_A_RUN}/ with one; give a saved generator or a run")
    try:
        # As a configuration, so that a generator of an earlier version may have keys that are no settings any more.
        saved = load_config(SavedGenerator, unsealed((directory / CONFIG).read_bytes()), [])
        # A folder of unknown origin may name files outside of it.
        files = {inside(directory, name): digest for name, digest in saved.files.items()}
    except (OSError, ValueError, ConfigError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(
            f"{directory / CONFIG} is damaged or of another version: {reason}; copy it again, or train the generator "
            "again"
        ) from error
    for file, digest in files.items():
        if not file.is_file() or sha256(file) != digest:
            raise ModelError(f"{file} is missing or does not have the checksum in {CONFIG}; copy {directory} again")
    return saved, directory


@dataclass(frozen=True)
class GeneratorFacts:
    """What is known of a generator before it is built; of a saved one by its file.

    Attributes:
        images_of_round: that a round gives; None where the settings do not tell.
        real_images: that it has learned from before; None where that is unknown.
        learns_from_real: whether it will learn from real images.
        moves_samples: whether its samples are moved to their labels by gradients of the teacher.
    """

    images_of_round: int | None
    real_images: int | None
    learns_from_real: bool
    moves_samples: bool

    def seen(self, train: int) -> int | None:
        """Number of real images that it has learned from in the end; None if that is unknown.

        Args:
            train: number of the run's real training images; a generator that learns from real images uses all of them.
        """
        return train if self.learns_from_real else self.real_images


def facts_of(settings: GeneratorSettings) -> GeneratorFacts:
    """What the settings of a generator tell, or the file of a saved one, which is read once.

    Args:
        settings: settings of the generator.

    Raises:
        ModelError: a saved generator cannot be read.
    """
    if isinstance(settings, SavedSettings):
        saved, _ = read_saved(settings.path)
        facts = facts_of(saved.settings)
        images = facts.images_of_round or SAMPLED
        return replace(facts, images_of_round=images, real_images=saved.real_images, learns_from_real=False)
    return GeneratorFacts(
        images_of_round=getattr(settings, "batch_size", None),
        real_images=0 if isinstance(settings, DATA_FREE) else None,
        learns_from_real=isinstance(settings, FROM_REAL),
        moves_samples=isinstance(settings, MOVED_SAMPLES),
    )


def real_images_seen(settings: GeneratorSettings, train: int) -> int | None:
    """Number of real images that a generator has learned from; None if that is unknown.

    Args:
        settings: settings of the generator.
        train: number of the run's real training images; a generator that learns from real images uses all of them.

    Raises:
        ModelError: a saved generator cannot be read.
    """
    return facts_of(settings).seen(train)
