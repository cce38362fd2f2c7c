"""`synthkd statistics`: join files of features and statistics that many machines made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from synthkd.errors import ConfigError, DataError
from synthkd.metrics.feature_cache import FEATURES, SavedSet, load_set, require_replaceable, save_set
from synthkd.metrics.joining import KEEP, joined
from synthkd.metrics.suite import FEWEST


def statistics(files: Sequence[str], out: str, keep: int = KEEP) -> str:
    """Join files and write one, which stands for all their images in an evaluation.

    Args:
        files: of `save_features`, `save_generated` and of this command; each is in memory once, alone.
        out: the file; `.safetensors` is added where it is missing.
        keep: rows of features that stay, a uniform sample of all; 0: only the moments.

    Returns:
        What the file has and which scores it gives, in lines.

    Raises:
        ConfigError: a name that is none of a file, a file that must not be replaced, or a negative `keep`.
        DataError: a file that cannot be read, or does not fit those before it.
    """
    path = _path(out)
    require_replaceable(path, "-o")
    if keep < 0:
        raise ConfigError(f"--keep: a sample has 0 images or more, got {keep}")
    at = ""

    def parts() -> Iterator[SavedSet]:
        nonlocal at
        for at in files:
            yield load_set(_path(at))

    try:
        whole = joined(parts(), keep)
    except DataError as error:
        raise DataError(str(error) if at in str(error) else f"{at}: {error}") from error
    save_set(whole, path)
    return "\n".join(_lines(path, whole, len(files)))


def _path(name: str) -> Path:
    path = Path(name).expanduser()
    if not path.name:
        raise ConfigError(f"{name!r} names no file; give a {FEATURES} file")
    return path if path.suffix == FEATURES or path.is_file() else path.with_name(path.name + FEATURES)


def _lines(path: Path, whole: SavedSet, files: int) -> Iterator[str]:
    assert whole.whole is not None
    n, rows, features = whole.whole.moments.n, whole.features.n, whole.features
    of = f"{files} file{'s' if files > 1 else ''}"
    yield f"{path}: {n:,} images of {of}, features of {features.extractor} (resize {features.resize})"
    if rows == n:
        yield "it has the features of all images, so every score is exact"
    elif rows >= FEWEST:
        yield f"FD is exact; the other scores are of a uniform sample of {rows:,} images, with the error of so many"
    else:
        yield f"FD is exact; it gives no other score, since these need features of {FEWEST} images: join with --keep"
