"""Real images that arrive while a student learns, in files that somebody puts into a folder.

Whenever batches ask, and not more often than every `poll` seconds, the folder is listed and files that are new there
are taken, in the order of their names and after those taken before. Batches draw from the newest images. Which files
were taken, and at which step, is the state: what a resumed run sees up to its checkpoint is what the first one saw.

One file that cannot be used must not end a training that is meant to go on: beside one that can, it is passed over, and
stands in the state as a file of no images.
"""

from __future__ import annotations

import logging
import math
import os
import time
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthkd.data.read.npz import as_images, as_labels, read_arrays
from synthkd.data.sources import RealImages
from synthkd.errors import DataError
from synthkd.rng import Rows
from synthkd.settings import StreamData
from synthkd.system.text import one_line
from synthkd.types import ImageSpec, check_labels

LOG = logging.getLogger(__name__)

_UNFINISHED = (".tmp.npz", ".partial.npz")  # np.savez adds .npz to a name that lacks it


@dataclass(frozen=True)
class Arrival:
    """A file that was taken.

    Attributes:
        step: at which batches first drew from it.
        name: of the file in its folder.
        images: how many it holds; 0 where it was passed over.
        held: how many of them are held out.
    """

    step: int
    name: str
    images: int
    held: int


class ImageStream:
    """The newest images of a folder that others fill; one process reads it.

    A share of the images is held out: each by a number drawn for the name of its file and its row, so that an image is
    held out in every run over these files, whatever came before it.

    Args:
        settings: the folder, and how it is read.
        spec: of the images and classes that the teacher knows.

    Attributes:
        arrivals: the files taken so far, in order.
        holdout: the newest images that are held out, `window * settings.holdout` at most, as of the latest step.

    Raises:
        DataError: there is no such folder, or there are files and none of them can be used.
    """

    def __init__(self, settings: StreamData, spec: ImageSpec) -> None:
        self._settings = settings
        self._spec = spec
        self._folder = Path(settings.path).expanduser()
        self._most_held = math.ceil(settings.window * settings.holdout)
        self._looked = -math.inf
        self._start_at(0, [])
        self._require_usable()

    @property
    def holds_out(self) -> bool:
        """Whether a share of the images is held out."""
        return self._settings.holdout > 0.0

    @property
    def arrived(self) -> int:
        """How many images have arrived so far, held-out ones and those that left again among them."""
        return sum(arrival.images for arrival in self.arrivals)

    def at(self, step: int, /) -> RealImages:
        """The images that a batch of this step draws from: the newest `window` of those not held out, at least one.

        Steps are asked for in their order.

        Raises:
            DataError: files of which none can be used, or no image within `patience` seconds.
        """
        if time.monotonic() - self._looked >= self._settings.poll:
            self._take_new(step)
        if not len(self._learned):
            self._wait(step)
        return self._learned

    def state_dict(self) -> dict[str, Any]:
        """Which files were taken at which step, and how many images each had."""
        return {"arrivals": [asdict(arrival) for arrival in self.arrivals]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Read again what batches drew from; files whose images had all left the window are not needed any more.

        Raises:
            DataError: a file that is needed is gone, or is no longer what it was.
        """
        arrivals = [Arrival(**entry) for entry in state["arrivals"]]
        needed, learned, held = len(arrivals), 0, 0
        while needed and (learned < self._settings.window or held < self._most_held):
            needed -= 1
            learned += arrivals[needed].images - arrivals[needed].held
            held += arrivals[needed].held
        before = arrivals[:needed]
        self._start_at(sum(arrival.images - arrival.held for arrival in before), before)
        for arrival in arrivals[needed:]:
            if not arrival.images:
                self._note(arrival)
                continue
            path = self._folder / arrival.name
            if not path.is_file():
                raise DataError(f"{path} was learned from and is gone; put it back, or delete the run to start anew")
            taken = self._take(arrival.step, arrival.name)
            if taken.images != arrival.images:
                raise DataError(
                    f"{path} was learned from with {arrival.images} images and has {taken.images} now; put it back as "
                    "it was, and new images into files of their own"
                )

    def _start_at(self, first: int, arrivals: list[Arrival]) -> None:
        """With no image in the window, the next one to be learned from having the number `first`."""
        self.arrivals = arrivals
        self._taken = {arrival.name for arrival in arrivals}
        nothing = torch.empty(0, *self._spec.shape, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)
        self._learned, self.holdout = RealImages(*nothing, first), RealImages(*nothing)

    def _require_usable(self) -> None:
        """Fail now rather than at the first step; in a run that is resumed the first name may be of any file."""
        refused: list[DataError] = []
        for name in self._names():
            try:
                self._read(name)
                return
            except DataError as error:
                refused.append(error)
        if refused:
            raise refused[0]

    def _wait(self, step: int) -> None:
        patience, poll = self._settings.patience, self._settings.poll
        until = time.monotonic() + patience
        LOG.warning("%s: waiting up to %g s for the first image", self._folder, patience)
        while not len(self._learned):
            left = until - time.monotonic()
            if left <= 0:
                raise DataError(
                    f"{self._folder}: no .npz file with an image to learn from came within {patience:g} s; put one "
                    "there, or set patience higher"
                )
            time.sleep(min(poll, left))
            self._take_new(step)

    def _take_new(self, step: int) -> None:
        refused: dict[str, DataError] = {}
        for name in self._names():
            if name not in self._taken:
                try:
                    self._take(step, name)
                except DataError as error:
                    refused[name] = error
        for name, reason in refused.items():
            if not self.arrived:
                raise reason
            LOG.warning("%s; it is passed over until it comes under another name", one_line(str(reason)))
            self._note(Arrival(step, name, 0, 0))
        self._looked = time.monotonic()

    def _names(self) -> list[str]:
        try:
            names = os.listdir(self._folder)
        except OSError as error:
            raise DataError(
                f"{self._folder} is not a folder that can be listed ({error.strerror}); make it, its files may come "
                "later"
            ) from error
        whole = (name for name in names if not name.startswith(".") and not name.endswith(_UNFINISHED))
        return sorted(name for name in whole if name.endswith(".npz"))

    def _take(self, step: int, name: str) -> Arrival:
        images, labels = self._read(name)
        held = Rows(0, f"holdout of {name}").uniform(len(labels), 1)[:, 0] < self._settings.holdout
        self._learned = _extended(self._learned, images[~held], labels[~held], self._settings.window)
        self.holdout = _extended(self.holdout, images[held], labels[held], self._most_held)
        return self._note(Arrival(step, name, len(labels), int(held.sum())))

    def _note(self, arrival: Arrival) -> Arrival:
        self._taken.add(arrival.name)
        self.arrivals.append(arrival)
        return arrival

    def _read(self, name: str) -> tuple[Tensor, Tensor]:
        """Images uint8 `[N, C, H, W]` and labels int64 `[N]`, all -1 in a file without labels."""
        path = self._folder / name
        if not zipfile.is_zipfile(path):
            raise DataError(
                f"{path} is no whole .npz; write a file under a name that begins with a dot, and rename it when it is "
                "complete"
            )
        arrays = read_arrays(path)
        images = as_images(arrays.images, f"{path}: images")
        if images.shape[1:] != self._spec.shape:
            wanted, got = ("x".join(map(str, shape)) for shape in (self._spec.shape, images.shape[1:]))
            raise DataError(f"{path}: images must be {wanted}, as the teacher's are, got {got}; convert them")
        if arrays.labels is None:
            return torch.from_numpy(images), torch.full((len(images),), -1)
        labels = torch.from_numpy(as_labels(arrays.labels, len(images), f"{path}: labels"))
        check_labels(labels, self._spec.classes, str(path))
        return torch.from_numpy(images), labels


def _extended(kept: RealImages, images: Tensor, labels: Tensor, most: int) -> RealImages:
    """With newer images at the end, the oldest beyond `most` left out."""
    images, labels = torch.cat([kept.images, images]), torch.cat([kept.labels, labels])
    gone = max(0, len(labels) - most)
    return RealImages(images[gone:], labels[gone:], kept.first + gone)
