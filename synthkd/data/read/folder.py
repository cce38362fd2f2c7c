"""Image folders: one directory per class, every file decoded and judged before anything trains.

Layout: `root/CLASS/**/image`, or `root/train/CLASS/...` beside `root/test/CLASS/...` (`val`, `valid` or `validation`
stand in for a missing `test`). Classes are the directory names in sorted order.

What can be converted is converted, and said in `notes`: palettes and other colour spaces to RGB, transparency onto
white (what an image viewer shows), 16-bit grey scaled to 8 bits, EXIF rotations applied, the first frame of animations.
What cannot be read is listed in one error, all files together. Files that are plainly no images (hidden ones, .txt,
.json, ...) are ignored with a note.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from synthkd.data.read.archives import DEEPEST
from synthkd.data.read.decode import LARGEST, NAMED, NOT_IMAGES, decode, some
from synthkd.data.read.splits import Source
from synthkd.errors import DataError

_TEST_NAMES = ("test", "val", "valid", "validation")
_NAMED_IN_NOTE = 3


@dataclass(frozen=True)
class _Listing:
    """Candidate files by split: `(path, label)` in order, and what was passed over."""

    train: tuple[tuple[Path, int], ...]
    test: tuple[tuple[Path, int], ...] | None
    class_names: tuple[str, ...]
    ignored: tuple[Path, ...]


def read_folder(root: str | Path, channels: int = 3, size: int | None = None, skip_bad: bool = False) -> Source:
    """Decode every image below `root` into one uint8 tensor, training images first.

    Args:
        root: the folder; `~` is expanded.
        channels: 1 (grey) or 3 (RGB) of the result; images are converted.
        size: side of the result in pixels: the largest centred square of each image, resized with antialiasing. None
            keeps images as they are, which must then all have one size.
        skip_bad: leave unreadable files out, with a note, instead of raising.

    Raises:
        DataError: no class directories or images; unreadable files (unless `skip_bad`); sizes that differ without
            `size`; train and test splits with different classes.
    """
    top = Path(root).expanduser()
    listing = _list(top)
    files = (*listing.train, *(listing.test or ()))
    bad: dict[Path, str] = {}
    kinds: dict[str, list[Path]] = {}
    sizes: Counter[tuple[int, int]] = Counter()
    kept: list[int] = []
    images: Tensor | None = None

    # Pillow warns about huge or sloppy files on stderr; both are judged and reported here.
    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore")
        results = pool.map(lambda entry: decode(entry[0], channels, size, LARGEST), files)
        for row, ((path, _), result) in enumerate(zip(files, results, strict=True)):
            if result.pixels is None:
                bad[path] = result.reason
                continue
            for kind in result.kinds:
                kinds.setdefault(kind, []).append(path)
            height, width = result.pixels.shape[:2]
            sizes[height, width] += 1
            if images is None:
                images = _allocate(len(files), channels, height, width, top)
            if len(sizes) == 1:  # with a second size the folder is refused, but the rest is still checked
                images[len(kept)] = torch.from_numpy(result.pixels).permute(2, 0, 1)
                kept.append(row)

    _refuse(top, len(files), {} if skip_bad else bad, sizes)
    if images is None:
        raise DataError(f"{top}: none of the {len(files)} files is a readable image: {_name(bad, top, NAMED)}")
    notes = [f"{len(kinds[kind])} images {kind}: {_name(kinds[kind], top, _NAMED_IN_NOTE)}" for kind in sorted(kinds)]
    if listing.ignored:
        names = _name(listing.ignored, top, _NAMED_IN_NOTE)
        notes.append(f"{len(listing.ignored)} files or folders ignored, not images of a class: {names}")
    if bad:
        notes.append(f"{len(bad)} unreadable files left out: {_name(bad, top, NAMED)}")
    return Source(
        images=images[: len(kept)],
        labels=torch.tensor([files[row][1] for row in kept], dtype=torch.int64),
        class_names=listing.class_names,
        train=None if listing.test is None else sum(row < len(listing.train) for row in kept),
        notes=tuple(notes),
    )


def _list(top: Path) -> _Listing:
    """Find splits, classes and candidate files."""
    if not top.is_dir():
        raise DataError(f"{top} is not a directory; set root to a folder with one directory per class")
    entries = _entries(top)
    ignored = [path for path in entries if not _is_class(path)]
    directories = {path.name: path for path in entries if _is_class(path)}
    # A class may itself be called "train" (cars, planes, trains): a split is recognised by class directories inside.
    is_split = "train" in directories and any(_is_class(path) for path in _entries(directories["train"]))
    if not is_split:
        if directories and set(directories) <= set(_TEST_NAMES):
            raise DataError(f"{top} has {some([*directories])} but no train/; add it, or set root to one of them")
        train, names, passed_over = _list_split(top)
        return _Listing(train, None, names, tuple(passed_over))

    train, names, passed_over = _list_split(directories["train"])
    test_name = next((name for name in _TEST_NAMES if name in directories), None)
    others = [path for name, path in directories.items() if name not in ("train", test_name)]
    strangers = [path.name for path in others if path.name not in _TEST_NAMES]
    if strangers:
        raise DataError(
            f"{top}: train/ holds class directories, but beside it is {some(strangers)}; move it into train/ or away"
        )
    ignored += [*passed_over, *others]
    if test_name is None:
        return _Listing(train, None, names, tuple(ignored))
    test, test_classes, passed_over = _list_split(directories[test_name])
    if test_classes != names:
        missing, extra = sorted(set(names) - set(test_classes)), sorted(set(test_classes) - set(names))
        raise DataError(
            f"{top}: train/ and {test_name}/ must have the same classes; only in train/: {some(missing)}; only in "
            f"{test_name}/: {some(extra)}"
        )
    return _Listing(train, test, names, (*ignored, *passed_over))


def _list_split(top: Path) -> tuple[tuple[tuple[Path, int], ...], tuple[str, ...], list[Path]]:
    """`(path, label)` of the candidate files below each class directory of `top`, the class names, and the ignored."""
    entries = _entries(top)
    classes = [path for path in entries if _is_class(path)]
    ignored = [path for path in entries if not _is_class(path)]
    if not classes:
        raise DataError(f"{top} has no class directories; put the images of each class into a directory of its name")
    files: list[tuple[Path, int]] = []
    empty = []
    for label, directory in enumerate(classes):
        before = len(files)
        for path in _walk(directory):
            if path.name.startswith(".") or NOT_IMAGES.fullmatch(path.suffix):
                ignored.append(path)
            else:
                files.append((path, label))
        if len(files) == before:
            empty.append(directory.name)
    if empty:
        raise DataError(f"{top}: no images in class {some(empty)}; add some, or remove the directory")
    return tuple(files), tuple(path.name for path in classes), ignored


def _entries(top: Path) -> list[Path]:
    try:
        return sorted(top.iterdir())
    except OSError as error:
        raise DataError(f"{top} cannot be listed ({error.strerror}); check its permissions") from error


def _is_class(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith((".", "__"))


def _walk(directory: Path) -> Iterable[Path]:
    """Files at any depth, sorted; links are followed, but no directory is entered twice."""
    seen = {directory.resolve()}
    depth = len(directory.parts)
    for parent, subdirectories, names in os.walk(directory, followlinks=True):
        if len(Path(parent).parts) - depth > DEEPEST:
            raise DataError(f"{directory} has more than {DEEPEST} levels of directories; is it a folder of images?")
        fresh = []
        for name in sorted(subdirectories):
            target = Path(parent, name).resolve()
            if not name.startswith((".", "__")) and target not in seen:
                seen.add(target)
                fresh.append(name)
        subdirectories[:] = fresh
        yield from (Path(parent, name) for name in sorted(names))


def _allocate(count: int, channels: int, height: int, width: int, top: Path) -> Tensor:
    try:
        return torch.empty(count, channels, height, width, dtype=torch.uint8)
    except RuntimeError as error:
        need = count * channels * height * width / 2**30
        raise DataError(
            f"{top}: {count} images of {channels}x{height}x{width} need {need:.0f} GiB of memory; set size to a "
            "smaller number of pixels"
        ) from error


def _refuse(top: Path, count: int, bad: dict[Path, str], sizes: Counter[tuple[int, int]]) -> None:
    """Raise one error with all that is wrong with the files."""
    problems = []
    if bad:
        problems.append(
            f"{len(bad)} of {count} files cannot be read as images: {_name(bad, top, NAMED)}; delete them, or set "
            "skip_bad: true to leave them out"
        )
    if len(sizes) > 1:
        shown = [f"{height}x{width} ({number})" for (height, width), number in sizes.most_common()]
        problems.append(
            f"images have {len(sizes)} different sizes, height x width: {some(shown)}; set size to resize them"
        )
    if problems:
        raise DataError(f"{top}: " + "; also, ".join(problems))


def _name(paths: Iterable[Path], top: Path, most: int) -> str:
    """The first paths relative to `top`, each with its reason where `paths` maps to one."""
    reasons = paths if isinstance(paths, dict) else {}
    shown = [str(path.relative_to(top)) + (f" ({reasons[path]})" if path in reasons else "") for path in paths]
    return some(shown, most)
