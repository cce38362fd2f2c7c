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
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from synthkd.data.splits import Source
from synthkd.errors import DataError

LARGEST = 64_000_000
"""Most pixels an image may have; a bigger one is a mistake or an attack, and is refused from its header alone."""

_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000")  # each known by its first bytes
_NOT_IMAGES = re.compile(
    r"\.(txt|md|rst|jsonl?|[ct]sv|xml|ya?ml|html?|log|ini|db|py|ipynb|np[yz]|pth?|pkl|safetensors|parquet|mat|h5"
    r"|zip|tar|gz|bz2|xz|pdf|mp4|avi|mov|sha256|md5)",
    re.IGNORECASE,
)
_TEST_NAMES = ("test", "val", "valid", "validation")
_NAMED = 10  # files an error names
_NAMED_IN_NOTE = 3


@dataclass(frozen=True)
class _Listing:
    """Candidate files by split: `(path, label)` in order, and what was passed over."""

    train: tuple[tuple[Path, int], ...]
    test: tuple[tuple[Path, int], ...] | None
    class_names: tuple[str, ...]
    ignored: tuple[Path, ...]


@dataclass(frozen=True)
class _Decoded:
    """One file: its pixels uint8 `[H, W, C]` or the reason why there are none, and the kinds of conversion done."""

    pixels: NDArray[np.uint8] | None
    kinds: tuple[str, ...] = ()
    reason: str = ""


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
        results = pool.map(lambda entry: _decode(entry[0], channels, size), files)
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
        raise DataError(f"{top}: none of the {len(files)} files is a readable image: {_name(bad, top, _NAMED)}")
    notes = [f"{len(kinds[kind])} images {kind}: {_name(kinds[kind], top, _NAMED_IN_NOTE)}" for kind in sorted(kinds)]
    if listing.ignored:
        names = _name(listing.ignored, top, _NAMED_IN_NOTE)
        notes.append(f"{len(listing.ignored)} files or folders ignored, not images of a class: {names}")
    if bad:
        notes.append(f"{len(bad)} unreadable files left out: {_name(bad, top, _NAMED)}")
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
            raise DataError(f"{top} has {_some([*directories])} but no train/; add it, or set root to one of them")
        train, names, passed_over = _list_split(top)
        return _Listing(train, None, names, tuple(passed_over))

    train, names, passed_over = _list_split(directories["train"])
    test_name = next((name for name in _TEST_NAMES if name in directories), None)
    others = [path for name, path in directories.items() if name not in ("train", test_name)]
    strangers = [path.name for path in others if path.name not in _TEST_NAMES]
    if strangers:
        raise DataError(
            f"{top}: train/ holds class directories, but beside it is {_some(strangers)}; move it into train/ or away"
        )
    ignored += [*passed_over, *others]
    if test_name is None:
        return _Listing(train, None, names, tuple(ignored))
    test, test_classes, passed_over = _list_split(directories[test_name])
    if test_classes != names:
        missing, extra = sorted(set(names) - set(test_classes)), sorted(set(test_classes) - set(names))
        raise DataError(
            f"{top}: train/ and {test_name}/ must have the same classes; only in train/: {_some(missing)}; only in "
            f"{test_name}/: {_some(extra)}"
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
            if path.name.startswith(".") or _NOT_IMAGES.fullmatch(path.suffix):
                ignored.append(path)
            else:
                files.append((path, label))
        if len(files) == before:
            empty.append(directory.name)
    if empty:
        raise DataError(f"{top}: no images in class {_some(empty)}; add some, or remove the directory")
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
    for parent, subdirectories, names in os.walk(directory, followlinks=True):
        fresh = []
        for name in sorted(subdirectories):
            target = Path(parent, name).resolve()
            if not name.startswith((".", "__")) and target not in seen:
                seen.add(target)
                fresh.append(name)
        subdirectories[:] = fresh
        yield from (Path(parent, name) for name in sorted(names))


def _decode(path: Path, channels: int, size: int | None) -> _Decoded:
    """Open, decode to the last byte and convert one file."""
    try:
        if path.stat().st_size == 0:
            return _Decoded(None, reason="empty file")
        with Image.open(path, formats=_FORMATS) as image:
            if image.width * image.height > LARGEST:
                return _too_large(f"{image.width}x{image.height} pixels")
            image.load()
            converted, kinds = _convert(image, channels)
        if size is not None:
            if min(converted.size) < size:
                kinds.append(f"smaller than {size} pixels enlarged")
            converted = ImageOps.fit(converted, (size, size), method=Image.Resampling.BILINEAR)
        pixels = np.array(converted, dtype=np.uint8)
        return _Decoded(pixels.reshape(*pixels.shape[:2], channels), tuple(kinds))
    except UnidentifiedImageError:
        return _Decoded(None, reason="not an image of a known format")
    except Image.DecompressionBombError:
        return _too_large("far too many pixels")
    except Exception as error:  # decoders meet arbitrary bytes and raise nearly anything; every such file is "bad"
        return _Decoded(None, reason=" ".join(str(error).split()) or type(error).__name__)


def _too_large(got: str) -> _Decoded:
    return _Decoded(None, reason=f"too large: {got}, at most {LARGEST // 10**6} million are allowed")


def _convert(image: Image.Image, channels: int) -> tuple[Image.Image, list[str]]:
    """The first frame, upright, 8 bits, without transparency, in mode L or RGB; and what that took."""
    kinds: list[str] = []
    # A JPEG of a camera that embeds a preview (MPO) has "frames" too, but is no animation.
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        kinds.append("of several frames cut to the first")
    if image.getexif().get(0x0112, 1) in range(2, 9):
        kinds.append("turned upright by their EXIF orientation")
    upright = ImageOps.exif_transpose(image)

    if upright.mode == "F":
        raise ValueError("floating-point pixels; save it with 8 or 16 bits")
    if upright.mode.startswith("I"):
        kinds.append("scaled from 16 to 8 bits")
        values = np.asarray(upright, dtype=np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"32-bit pixels in {values.min()}..{values.max()}; save it with 8 or 16 bits")
        upright = Image.fromarray(np.rint(values / 257.0).astype(np.uint8))
    if upright.mode in ("P", "PA"):
        kinds.append("converted from a palette")
    elif upright.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        kinds.append(f"converted from {upright.mode}")

    if upright.has_transparency_data:
        layer = upright.convert("RGBA")
        if layer.getchannel("A").getextrema()[0] != 255:
            kinds.append("with transparency put on white")
        upright = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    grey_source = image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I")
    if channels == 3 and grey_source:
        kinds.append("repeated from grey to 3 channels")
    if channels == 1 and not grey_source:
        kinds.append("turned from colour to grey")
    return upright.convert("L" if channels == 1 else "RGB"), kinds


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
            f"{len(bad)} of {count} files cannot be read as images: {_name(bad, top, _NAMED)}; delete them, or set "
            "skip_bad: true to leave them out"
        )
    if len(sizes) > 1:
        shown = [f"{height}x{width} ({number})" for (height, width), number in sizes.most_common()]
        problems.append(
            f"images have {len(sizes)} different sizes, height x width: {_some(shown)}; set size to resize them"
        )
    if problems:
        raise DataError(f"{top}: " + "; also, ".join(problems))


def _name(paths: Iterable[Path], top: Path, most: int) -> str:
    """The first paths relative to `top`, each with its reason where `paths` maps to one."""
    reasons = paths if isinstance(paths, dict) else {}
    shown = [str(path.relative_to(top)) + (f" ({reasons[path]})" if path in reasons else "") for path in paths]
    return _some(shown, most)


def _some(names: Sequence[str], most: int = _NAMED) -> str:
    """The first `most` names in a line, then how many more there are."""
    if not names:
        return "none"
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
