"""Decoding of image files to 8-bit pixels, with the conversions that were done, or why a file cannot be read.

Palettes of greys become grey, other palettes and colour spaces RGB. Transparency is put on white (as an image viewer
shows it), 16-bit grey is scaled to 8 bits, EXIF rotations are applied, and of an animation the first frame is taken.
"""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError, features

from synthkd.data.read.fit import Fit
from synthkd.errors import DataError
from synthkd.system.text import one_line

LARGEST = 64_000_000
"""Most pixels of an image. A larger one is a mistake or an attack, and is refused by its header, before decoding."""

MOST_PACKED, FREELY_PACKED = 256, 16_000_000
"""Most pixels for each byte of a file (eight times as many in black and white), unless it has at most the second
number of pixels. Scanned pages shrink a thousandfold; a hundred huge, empty images would take minutes to decode."""

NOT_IMAGES = re.compile(
    r"\.(txt|md|rst|jsonl?|[ct]sv|xml|ya?ml|html?|log|ini|db|py|ipynb|np[yz]|pth?|pkl|safetensors|parquet|mat|h5"
    r"|zip|tar|gz|bz2|xz|pdf|mp4|avi|mov|sha256|md5)",
    re.IGNORECASE,
)
"""Suffixes of files that may lie beside images and are certainly none."""

NAMED = 10
"""Most files that an error names; of the others it gives the number."""

Reader = Callable[[], Path | bytes]
"""Returns the path or the bytes of an image file, in any thread; may raise any error."""

Item = TypeVar("Item")
Result = TypeVar("Result")

_WINDOW = 32  # files decoded at once
_ORIENTATION = 0x0112  # EXIF; 5 to 8 exchange height and width
_TAIL = 1024  # bytes in which the end mark of a file lies
# Each is known by its first bytes. Pillow's other formats include some that run external programs (EPS).
_FORMATS = (
    "PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000",
    *(["AVIF"] if features.check("avif") else []),  # Pillow may be built without it
)  # fmt: skip


@dataclass(frozen=True)
class Decoded:
    """One decoded file.

    Attributes:
        pixels: uint8 `[H, W, C]`, C 1 or 3; None where the file cannot be read.
        kinds: the conversions that were done, as they follow "3 images" in a note.
        reason: why there are no pixels.
    """

    pixels: NDArray[np.uint8] | None
    kinds: tuple[str, ...] = ()
    reason: str = ""


def decode(source: Path | bytes, channels: int | None = None, fit: Fit | int | None = None) -> Decoded:
    """Open, decode to the last byte and convert one file; a bad file never raises, it gives a reason.

    Args:
        source: the file, or its bytes.
        channels: 1 (grey) or 3 (RGB) of the result; None keeps what the file stores: 1 for its grey modes and for
            palettes of greys, else 3.
        fit: size of the result, or the side in pixels of the largest centred square, resized with antialiasing; None
            keeps the image's own.
    """
    try:
        file_size = len(source) if isinstance(source, bytes) else source.stat().st_size
        if file_size == 0:
            return Decoded(None, reason="empty file")
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS) as image:
            # From the header: nothing is allocated for the pixels before this check.
            if too_large := _objection(image, file_size):
                return Decoded(None, reason=too_large)
            image.load()  # to the last byte, else a file that breaks off would pass
            result, kinds = _convert(image, channels)
        if fit is not None:
            fit = Fit(crop=(fit, fit)) if isinstance(fit, int) else fit
            if fit.enlarges(result.height, result.width):
                kinds.append(f"smaller than {fit.pixels} pixels enlarged")
            result = fit(result)
        array = np.array(result, dtype=np.uint8)
        return Decoded(array if array.ndim == 3 else array[:, :, None], tuple(kinds))
    except UnidentifiedImageError:
        return Decoded(None, reason="not an image of a known format")
    except Image.DecompressionBombError:
        return Decoded(None, reason=_too_large("far too many pixels"))
    except Exception as error:  # decoders meet arbitrary bytes and raise nearly anything; every such file is "bad"
        return Decoded(None, reason=in_a_line(error))


def upright_size(content: bytes) -> tuple[int, int] | None:
    """(height, width) of an upright image by its header; None if only `decode` can tell that the file is good.

    A header vouches for a whole JPEG or PNG: the end of the file is there as well. Damage between may remain.
    """
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
            end = b"IEND" if image.format == "PNG" else b"\xff\xd9"
            # Pillow decodes a whole PNG for its orientation, which lies behind the pixels.
            if content.rfind(end, -_TAIL) < 0 or _objection(image, len(content)) or b"eXIf" in content:
                return None
            turned = image.format != "PNG" and image.getexif().get(_ORIENTATION, 1) in range(5, 9)
            return (image.width, image.height) if turned else (image.height, image.width)
    except Exception:
        return None


def read_and_decode(read: Reader, channels: int | None = None, fit: Fit | int | None = None) -> Decoded:
    """`decode` for the file or the bytes that a reader returns; an error of the reader becomes the reason."""
    try:
        source = read()
    except Exception as error:  # archives meet arbitrary bytes as decoders do
        return Decoded(None, reason=in_a_line(error))
    return decode(source, channels, fit)


def in_threads(one: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """The results of a function of one file, in order, a window of files at a time.

    A window bounds the memory, however slowly the caller takes the results.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for first in range(0, len(items), _WINDOW):
            # Pillow warns about odd files on stderr, but here each file gets its verdict. Warnings are on again before
            # the yield, after which the code of the caller runs.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                window = list(pool.map(one, items[first : first + _WINDOW]))
            yield from window


def in_a_line(error: Exception) -> str:
    """The text of an error in one line; the name of its class if it has no text."""
    return " ".join(str(error).split()) or type(error).__name__


def refuse_bad(where: Path | str, count: int, bad: Sequence[tuple[str, str]], allowed: int) -> None:
    """Raise `DataError` when more files are bad than allowed, or all of them.

    Args:
        where: path of the set, or words for several.
        count: number of files that were tried.
        bad: `(name, reason)` of the files that could not be read.
        allowed: number of files that may be left out.
    """
    if len(bad) > allowed:
        more = f", more than skip_bad={allowed} allows" if allowed else ""
        raise DataError(
            f"{where}: {len(bad)} of {count} files cannot be read as images{more}: {with_reasons(bad)}; delete them, "
            f"or leave them out with skip_bad={len(bad)} (--skip-bad {len(bad)})"
        )
    if len(bad) == count:
        raise DataError(f"{where}: none of the {count} files is a readable image: {with_reasons(bad)}; check the path")


def with_reasons(bad: Sequence[tuple[str, str]]) -> str:
    """The first bad files in one line, each with its reason."""
    return some([f"{name} ({reason})" for name, reason in bad])


def some(names: Sequence[str], most: int = NAMED, count: int | None = None) -> str:
    """The first `most` names in one line, and the number of the others; there are `count`, None: as many as names."""
    if not names:
        return "none"
    rest = (len(names) if count is None else count) - most
    return ", ".join(map(one_line, names[:most])) + (f" and {rest} more" if rest > 0 else "")


def _too_large(got: str) -> str:
    return f"too large: {got}, at most {LARGEST // 10**6} million are allowed"


def _objection(image: Image.Image, file_size: int) -> str:
    """Why an image is not decoded, by its header; empty if it is."""
    pixels = image.width * image.height
    if pixels > LARGEST:
        return _too_large(f"{image.width}x{image.height} pixels")
    if pixels > max(MOST_PACKED * file_size * (8 if image.mode == "1" else 1), FREELY_PACKED):
        return f"too large: {image.width}x{image.height} pixels in {file_size} bytes"
    return ""


def _convert(image: Image.Image, channels: int | None) -> tuple[Image.Image, list[str]]:
    """The first frame, upright, in 8 bits, without transparency, in mode L or RGB; and the conversions it took."""
    kinds: list[str] = []
    # A JPEG of a camera that embeds a preview (MPO) has "frames" too, but is no animation.
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        kinds.append("of several frames cut to the first")
    if image.getexif().get(_ORIENTATION, 1) in range(2, 9):
        kinds.append("turned upright by their EXIF orientation")
    upright = ImageOps.exif_transpose(image)

    if upright.mode == "F":
        raise ValueError("floating-point pixels; save it with 8 or 16 bits")
    if upright.mode.startswith("I"):
        kinds.append("scaled from 16 to 8 bits")
        # 16-bit grey may come in a 32-bit mode, so the values decide.
        values = np.asarray(upright, dtype=np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"32-bit pixels in {values.min()}..{values.max()}; save it with 8 or 16 bits")
        # 65535 / 257 = 255, so that black and white stay black and white. Pillow's conversion of mode I clips at 255.
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
    # The mode of the file, not of the upright image, which may be RGBA by now.
    grey_source = image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I") or _has_grey_palette(image)
    if channels == 3 and grey_source:
        kinds.append("repeated from grey to 3 channels")
    if channels == 1 and not grey_source:
        kinds.append("turned from colour to grey")
    grey = grey_source if channels is None else channels == 1
    return upright.convert("L" if grey else "RGB"), kinds


def _has_grey_palette(image: Image.Image) -> bool:
    """Whether an image has a palette and all the colours that it uses are grey."""
    if image.mode not in ("P", "PA"):
        return False
    pixels = np.asarray(image.convert("RGB"))
    return bool((pixels[..., :1] == pixels[..., 1:]).all())
