"""Ways to ask a black box about images: a Python function, an HTTP address, an ONNX file; and what its answers mean.

Images are sent as uint8 `[N, C, H, W]`. Nothing is sent anywhere but to the address of the settings: redirections are
not followed, and proxies of the environment are not used.
"""

from __future__ import annotations

import http.client
import io
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from synthkd.errors import ModelError
from synthkd.imports import resolve
from synthkd.models.onnx_session import OnnxSession
from synthkd.settings import LabelsTeacher
from synthkd.system.text import first_line, one_line, parse_json

Pixels = NDArray[np.uint8]
Ask = Callable[[Pixels], object]
"""Images uint8 `[N, C, H, W]` -> answers in whatever form the black box gives them; see `as_answers`."""

TRIES = 5
"""Times that a request is sent to an address that does not answer."""
FIRST_PAUSE = 1.0
"""Seconds before the second try; each next pause is twice as long."""
TIMEOUT = 60.0
"""Seconds that an answer may take."""
MOST_BYTES = 2**28
"""Largest answer that is read."""
TOLERANCE = 0.02
"""By how much a row of probabilities may miss the sum 1: services round them."""


def asker(settings: LabelsTeacher) -> Ask:
    """The way of asking that the settings name; nothing is asked yet.

    Raises:
        ConfigError: a function that cannot be imported, or an ONNX file with other inputs than images.
        ModelError: a function that this recipe does not name, or an ONNX file that cannot be read.
        MissingExtraError: an ONNX file without onnxruntime.
    """
    if settings.function is not None:
        return _Function(settings.function)
    return _Address(settings.url) if settings.url is not None else _OnnxFile(settings)


def as_answers(raw: object, count: int, settings: LabelsTeacher) -> NDArray[Any]:
    """Answers as numbers: labels int64 `[count]`, or probabilities float32 `[count, K]` whose rows sum to 1.

    Args:
        raw: as the black box gave them.
        count: number of images that were asked about.
        settings: of the black box.

    Raises:
        ModelError: they are neither, or not what the settings say.
    """
    classes, who = settings.classes, whom(settings)
    try:
        array = np.asarray(raw)
    except ValueError as error:  # rows of different lengths
        raise ModelError(f"{who} answers in rows of different lengths; answer all images alike") from error
    if array.dtype.kind not in "iufb" or array.shape not in ((count,), (count, 1), (count, classes)):
        raise ModelError(
            f"{who} must answer {count} images with numbers [{count}] or [{count}, {classes}], got {array.dtype} "
            f"{list(array.shape)}; set classes to theirs, and answer labels as numbers from 0"
        )
    is_row = array.shape == (count, classes) and (classes > 1 or settings.answers == "probabilities")
    if settings.answers == "probabilities":
        if not is_row:
            raise ModelError(f"{who} answers labels, not probabilities; set teacher.answers to labels")
        return _probabilities(array.astype(np.float64), who)
    if not np.isfinite(array).all():
        raise ModelError(f"{who} answers numbers that are not finite; mend it, and run the same command again")
    labels = array.argmax(axis=1) if is_row else array.reshape(count)
    if (labels != np.floor(labels)).any() or labels.min() < 0 or labels.max() >= classes:
        raise ModelError(
            f"{who} answers labels from {labels.min():g} to {labels.max():g}; they are whole numbers from 0 to "
            f"{classes - 1} where classes is {classes}"
        )
    return labels.astype(np.int64)


def whom(settings: LabelsTeacher) -> str:
    """The black box in words, without what an address may hold besides its place."""
    if settings.url is not None:
        parts = urlsplit(settings.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    return settings.function or str(settings.file)


def _probabilities(rows: NDArray[np.float64], who: str) -> NDArray[np.float32]:
    sums = rows.sum(axis=1)
    if not np.isfinite(rows).all() or rows.min() < -TOLERANCE or np.abs(sums - 1.0).max() > TOLERANCE:
        raise ModelError(
            f"{who} answers rows from {rows.min():g} to {rows.max():g} that sum to {sums.min():g} to {sums.max():g}, "
            "which are no probabilities; take a softmax, or set teacher.answers to labels"
        )
    rows = rows.clip(min=0.0)
    return np.asarray(rows / rows.sum(axis=1, keepdims=True), np.float32)


class _Function:
    """A function of the user's."""

    def __init__(self, name: str) -> None:
        self._name, self._function = name, resolve(name, "teacher.function", None)

    def __call__(self, images: Pixels) -> object:
        try:
            answers = self._function(images)
        except Exception as error:  # other people's code may fail in any way
            raise ModelError(f"teacher.function: {self._name} failed: {first_line(error)}") from error
        # A tensor of torch, which may ask for a gradient.
        return answers.detach().cpu() if hasattr(answers, "detach") else answers


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    """Answers that name another address are errors: the images are for this one."""

    def redirect_request(self, *_: object) -> None:
        return None


class _Address:
    """An HTTP address. Images are posted as the bytes of a .npy file; the answer is a JSON list."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirection()).open

    def __call__(self, images: Pixels) -> object:
        body = io.BytesIO()
        np.save(body, images, allow_pickle=False)
        place, pause = f"teacher.url: {one_line(self._url.partition('?')[0])}", FIRST_PAUSE
        for attempt in range(TRIES):
            if attempt:
                time.sleep(pause)
                pause *= 2
            try:
                return self._post(body.getvalue(), place)
            except urllib.error.HTTPError as error:
                error.close()
                reason = f"{error.code} {error.reason}"
                if error.code < 500 and error.code != http.client.TOO_MANY_REQUESTS:
                    raise ModelError(
                        f"{place} answers {reason} to a POST of {len(images)} images; see docs/teachers.md for what is "
                        "sent"
                    ) from error
            except (OSError, http.client.HTTPException) as error:  # no connection, timeout, half an answer
                reason = first_line(error)
        raise ModelError(
            f"{place} did not answer in {TRIES} tries ({reason}); start it, and run the same command again, which goes "
            "on with the answers so far"
        )

    def _post(self, body: bytes, place: str) -> object:
        headers = {"Content-Type": "application/x-npy", "Accept": "application/json"}
        request = urllib.request.Request(self._url, body, headers, method="POST")
        with self._open(request, timeout=TIMEOUT) as response:
            text = response.read(MOST_BYTES + 1)
        try:
            if len(text) > MOST_BYTES:
                raise ValueError(f"it is longer than {MOST_BYTES} bytes")
            return parse_json(text)
        except ValueError as error:
            raise ModelError(
                f"{place} answers no JSON: {first_line(error)}; answer a list, one item an image"
            ) from error


class _OnnxFile:
    """An ONNX file, run by ONNX Runtime on the processor; its first output has labels, probabilities or logits."""

    def __init__(self, settings: LabelsTeacher) -> None:
        self._file, self._settings = str(settings.file), settings
        # One thread: with several, sums have another order and answers other last bits.
        self._session = OnnxSession(Path(self._file), f"teacher.file: {self._file}", threads=1)

    def __call__(self, images: Pixels) -> object:
        levels = self._session.kind is np.uint8
        rows = self._session(images if levels else images.astype(np.float32) / np.float32(255))
        if self._settings.answers == "labels" or np.ndim(rows) != 2:
            return rows
        is_softmax = rows.min() >= 0 and np.abs(rows.sum(axis=1) - 1).max() <= TOLERANCE
        if is_softmax:
            return rows
        powers = np.exp(rows.astype(np.float64) - rows.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)
