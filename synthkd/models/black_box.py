"""A teacher that answers images by labels or probabilities: a budget of queries, and a record of all answers on disk.

An image that was asked before is not asked again; images are told apart by their pixels. Answers are on disk before
they are used, so a run that was killed and goes on asks nothing twice, and ends as if it had not been killed.

Answers become logits, which everything else in synthkd takes. The logarithm of a probability is a logit. A label is a
probability of 1, so at temperature 1 the soft-label loss is the cross-entropy to the label, as where a student copies a
model by its labels alone (Papernot et al. 2017; Orekondy et al. 2019).
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from synthkd.errors import CheckpointError, ModelError
from synthkd.models.asking import Ask, as_answers, asker, whom
from synthkd.models.classifier import Classifier
from synthkd.settings import LabelsTeacher
from synthkd.system.files import naming, sha256, write_atomically
from synthkd.types import ImageSpec, InBlocks, to_uint8

ANSWERS = "answers.bin"
"""The record of answers, in the run directory."""
LEAST_PROBABILITY = 1e-6
"""A smaller probability counts as this one, whose logarithm is finite."""
_LOOKED_UP = 256
"""Images of which it is looked up at a time whether they were asked before."""
_KEY = 32
"""Bytes of a SHA-256."""


class BlackBox:
    """Answers images from its record, else by asking, as long as the budget lasts.

    The budget counts different images. The state is how many of them the run has asked about: a run that goes on from a
    checkpoint asks for those after it again, finds them in the record, and decides by the budget as it did before.

    Args:
        settings: whom to ask, the budget, and the form of the answers.
        ask: the way of asking; None: that of the settings.

    Attributes:
        settings: as given.
        spec: images and classes.
        progress: called after each call of the black box; None: nothing is.
    """

    def __init__(self, settings: LabelsTeacher, ask: Ask | None = None) -> None:
        size = settings.size if isinstance(settings.size, tuple) else (settings.size, settings.size)
        self.settings = settings
        self.spec = ImageSpec(settings.channels, *size, settings.classes)
        self._ask = asker(settings) if ask is None else ask
        self._rows: dict[bytes, int] = {}  # key of an image -> number of its answer, in the order of asking
        self._answers: list[NDArray[Any]] = []
        self._seen: set[int] = set()  # numbers of the answers that the run has used so far
        self._earlier = 0
        self._file: Path | None = None
        self.progress: Callable[[], None] | None = None

    def __deepcopy__(self, _: object) -> BlackBox:
        """Itself: copies of a network that asks it share its budget and its record."""
        return self

    @property
    def used(self) -> int:
        """Number of different images that the run has asked about so far."""
        return len(self._seen)

    @property
    def paid(self) -> int:
        """Number of answers in the record: those of the run so far, and more after a kill."""
        return len(self._answers)

    @property
    def left(self) -> int:
        """Number of images that the run may still ask about."""
        return self.settings.queries - self.used

    @property
    def words(self) -> str:
        """What it is and what it may be asked, for people."""
        settings = self.settings
        return f"black box {whom(settings)}, answers {settings.answers}, at most {settings.queries:,} queries"

    def record(self, path: Path) -> None:
        """Read the record of answers at `path`, if there is one, and go on with it.

        Raises:
            CheckpointError: it is damaged, or of other answers.
        """
        self._file = path
        if not path.exists():
            write_atomically(path, self._head)
            return
        data, length = path.read_bytes(), self._length
        head = next((one for one in (self._head, _line(self._form)) if data.startswith(one)), None)
        if head is None:
            raise CheckpointError(f"{path} is damaged, or of other answers; {_RESTORE}")
        whole = (len(data) - len(head)) // length
        for number in range(whole):
            entry = data[len(head) + number * length :][:length]
            if zlib.crc32(entry[:-4]) != int.from_bytes(entry[-4:], "little"):
                raise CheckpointError(f"{path} is damaged in answer {number + 1}; {_RESTORE}")
            self._keep(entry[:_KEY], np.frombuffer(entry[_KEY:-4], self._kind))
        # The end of an answer that a kill cut short; it was not used yet.
        os.truncate(path, len(head) + whole * length)

    def count_earlier(self, used: int) -> None:
        """Count the first answers of the record as used, whatever a checkpoint says: the run that is extended did.

        Args:
            used: number of images that it had asked about when it was finished.

        Raises:
            CheckpointError: the record lacks answers of them.
        """
        self._earlier = used
        self.load_state_dict({"asked": used})

    def logits(self, images: Tensor) -> Tensor:
        """Logarithms of the answers' probabilities, float32 `[N, K]` on the CPU.

        Args:
            images: `[N, C, H, W]`, uint8 or float in [0, 1], which is rounded to uint8 as it is asked.

        Raises:
            ModelError: the budget does not cover the images, of which none is asked then; or no usable answer.
        """
        pixels = images if images.dtype == torch.uint8 else to_uint8(images)
        pixels = pixels.cpu().contiguous()
        keys = _keys(pixels)
        new = self._new(keys)
        if len(new) > self.left:
            raise ModelError(
                f"teacher.queries: {len(new):,} images are to be asked, and {self.left:,} of {self.settings.queries:,} "
                "queries are left; raise it, or take fewer images"
            )
        unknown = [(key, place) for key, place in new.items() if key not in self._rows]
        for first in range(0, len(unknown), self.settings.batch_size):
            part = unknown[first : first + self.settings.batch_size]
            raw = self._ask(pixels[[place for _, place in part]].numpy())
            self._write([key for key, _ in part], as_answers(raw, len(part), self.settings))
            if self.progress is not None:
                self.progress()
        self._seen.update(self._rows[key] for key in new)
        return self._log_probabilities([self._answers[self._rows[key]] for key in keys])

    def covers(self, images: InBlocks) -> bool:
        """Whether the budget covers images uint8 `[N, C, H, W]`; nothing is asked."""
        keys = [key for part in images.split(_LOOKED_UP) for key in _keys(part)]
        return len(self._new(keys)) <= self.left

    def state_dict(self) -> dict[str, Any]:
        """The number of images `asked` so far; their answers are in the record."""
        return {"asked": self.used}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned.

        Raises:
            CheckpointError: the record lacks answers that the run has used.
        """
        if state["asked"] > self.paid:
            raise CheckpointError(
                f"{self._file} has {self.paid:,} answers and the checkpoint used {state['asked']:,}; {_RESTORE}"
            )
        self._seen = set(range(max(self._earlier, state["asked"])))

    def _new(self, keys: list[bytes]) -> dict[bytes, int]:
        """Each different key that the run has not asked about -> its first place."""
        new: dict[bytes, int] = {}
        for place, key in enumerate(keys):
            if self._rows.get(key) not in self._seen:
                new.setdefault(key, place)
        return new

    def _keep(self, key: bytes, answer: NDArray[Any]) -> None:
        self._rows[key] = len(self._answers)
        self._answers.append(answer)

    def _write(self, keys: list[bytes], answers: NDArray[Any]) -> None:
        entries = [
            key + np.ascontiguousarray(row, self._kind).tobytes() for key, row in zip(keys, answers, strict=True)
        ]
        if self._file is not None:
            with naming(self._file), self._file.open("ab") as file:
                file.write(b"".join(entry + zlib.crc32(entry).to_bytes(4, "little") for entry in entries))
                # They were paid for: even a power failure must not lose them.
                file.flush()
                os.fsync(file.fileno())
        for key, row in zip(keys, answers, strict=True):
            self._keep(key, np.atleast_1d(row))

    def _log_probabilities(self, answers: list[NDArray[Any]]) -> Tensor:
        rows = torch.from_numpy(np.array(answers)).reshape(len(answers), -1)
        if self.settings.answers == "labels":
            rows = nn.functional.one_hot(rows[:, 0], self.spec.classes).float()
        rows = rows.clamp_min(LEAST_PROBABILITY)
        return (rows / rows.sum(dim=1, keepdim=True)).log()

    @property
    def _kind(self) -> np.dtype[Any]:
        return np.dtype("<i8" if self.settings.answers == "labels" else "<f4")

    @property
    def _length(self) -> int:
        """Bytes of an answer in the record: the key of its image, the answer, a checksum."""
        return _KEY + self._kind.itemsize * (1 if self.settings.answers == "labels" else self.spec.classes) + 4

    @property
    def _form(self) -> dict[str, object]:
        """Of the answers; all that the head of a record had in an earlier version."""
        return {"format": 1, "answers": self.settings.answers, "spec": str(self.spec)}

    @cached_property
    def _head(self) -> bytes:
        file = self.settings.file
        return _line(self._form | {"of": whom(self.settings) if file is None else sha256(Path(file))})


def _line(about: Mapping[str, object]) -> bytes:
    return json.dumps(about).encode() + b"\n"


_RESTORE = "restore it from a copy, or choose another out=, which asks everything again"


class _Asking(nn.Module):
    """A network without parameters, whose logits are the answers of a black box."""

    def __init__(self, black_box: BlackBox) -> None:
        super().__init__()
        self.black_box = black_box

    def forward(self, images: Tensor) -> Tensor:
        if type(images) is not Tensor:  # a proxy of torch.fx, which asks what the network does
            raise TypeError("a black box has no graph")
        return self.black_box.logits(images).to(images.device)


def black_box_model(settings: LabelsTeacher, record: Path | None = None) -> Classifier:
    """A classifier that asks a black box. It has no parameters and no gradient.

    Args:
        settings: whom to ask, and how often.
        record: the file of the answers; None keeps them in memory.

    Raises:
        SynthkdError: as `synthkd.models.asking.asker` and `BlackBox.record`.
    """
    black_box = BlackBox(settings)
    if record is not None:
        black_box.record(record)
    about = {"model": f"black box {whom(settings)}"}
    return Classifier(_Asking(black_box), black_box.spec, recipe=about, class_names=settings.class_names or ()).eval()


def black_box_of(model: Classifier | None) -> BlackBox | None:
    """The black box that a classifier asks; None for a network."""
    return model.body.black_box if model is not None and isinstance(model.body, _Asking) else None


def _keys(images: Tensor) -> list[bytes]:
    """By which images uint8 `[N, C, H, W]` are known: the sha256 of the pixels of each."""
    return [hashlib.sha256(image.tobytes()).digest() for image in images.cpu().numpy()]
