"""Real images that arrive while a student learns, in files that somebody puts into a folder.

The folder is listed when a batch is drawn, but at most every `POLL` seconds. New files are added in the order of their
names, after all earlier files. Batches draw from the newest images. The state is the list of files with the steps at
which they were added, so that a resumed run has the images that the run had at its checkpoint.

One unusable file must not end a long training. If any other file was usable, it is skipped with a warning; the state
lists it as a file without images.
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
from synthkd.types import ImageSpec, alike_in_channels, check_labels, in_channels

LOG = logging.getLogger(__name__)

POLL = 1.0
"""Smallest number of seconds between two listings of the folder. A step is often shorter, and to list a folder of many
files, or one on another machine, may take as long as a step."""
_UNFINISHED = (".tmp.npz", ".partial.npz")  # np.savez adds .npz to a name that lacks it


@dataclass(frozen=True)
class Arrival:
    """A file that was added to the stream.

    Attributes:
        step: the first step whose batch could draw from it.
        name: of the file in its folder.
        images: number of its images; 0 if it was skipped.
        held: number of its images that are held out.
    """

    step: int
    name: str
    images: int
    held: int


class ImageStream:
    """The newest images of a folder that others fill; it is read in one process only.

    A share of the images is held out. Whether an image is depends only on the name of its file and its row there, so
    the same images are held out in every run over these files.

    Args:
        settings: the folder, and how it is read.
        spec: sizes of the teacher's images and number of its classes.

    Attributes:
        arrivals: the files added so far, in order.
        holdout: the newest held-out images, at most `window * settings.holdout`, as of the latest step.

    Raises:
        DataError: the folder does not exist, or it has files and none of them is usable.
    """

    def __init__(self, settings: StreamData, spec: ImageSpec) -> None:
        self._settings = settings
        self._spec = spec
        self._folder = Path(settings.path).expanduser()
        self._most_held = math.ceil(settings.window * settings.holdout)
        self._checked = -math.inf  # when the folder was last listed, monotonic seconds
        self._start_at(0, [])
        self._require_usable()

    @property
    def holds_out(self) -> bool:
        """Whether a share of the images is held out."""
        return self._settings.holdout > 0.0

    @property
    def arrived(self) -> int:
        """Number of images that have arrived so far, including held-out ones and those that left the window."""
        return sum(arrival.images for arrival in self.arrivals)

    def at(self, step: int, /) -> RealImages:
        """The images that a batch of a step draws from: the newest `window` that are not held out, at least one.

        Args:
            step: of the student; never smaller than in the call before.

        Raises:
            DataError: none of the files is usable, or no image arrived within `patience` seconds.
        """
        # By time, not by step: a listing at every step may cost more than the step, e.g. on a network drive.
        if time.monotonic() - self._checked >= POLL:
            self._take_new(step)
        if not len(self._learned):
            self._wait(step)
        return self._learned

    def state_dict(self) -> dict[str, Any]:
        """The files added so far with their steps and numbers of images, as `arrivals`."""
        return {"arrivals": [asdict(arrival) for arrival in self.arrivals]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Read the files of the window again. Files whose images have all left it are not needed.

        Raises:
            DataError: a file of the window is gone, or has another number of images.
        """
        arrivals = [Arrival(**entry) for entry in state["arrivals"]]
        # Count back from the newest file until both the window and the held-out images are full: older files may have
        # been deleted since.
        oldest, window, holdout = len(arrivals), 0, 0
        while oldest and (window < self._settings.window or holdout < self._most_held):
            oldest -= 1
            window += arrivals[oldest].images - arrivals[oldest].held
            holdout += arrivals[oldest].held
        before = arrivals[:oldest]
        # The images of the earlier files still count, so that every image keeps the number that it had.
        self._start_at(sum(arrival.images - arrival.held for arrival in before), before)
        for arrival in arrivals[oldest:]:
            if not arrival.images:
                self._append(arrival)
                continue
            path = self._folder / arrival.name
            if not path.is_file():
                raise DataError(f"{path} was learned from and is gone; put it back, or delete the run to start anew")
            present = self._take(arrival.step, arrival.name)
            if present.images != arrival.images:
                raise DataError(
                    f"{path} was learned from with {arrival.images} images and has {present.images} now; put it back "
                    "as it was, and new images into files of their own"
                )

    def _start_at(self, first: int, arrivals: list[Arrival]) -> None:
        """Empty the window; the next image to learn from gets the number `first`."""
        self.arrivals = arrivals
        self._taken = {arrival.name for arrival in arrivals}
        nothing = torch.empty(0, *self._spec.shape, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)
        self._learned, self.holdout = RealImages(*nothing, first), RealImages(*nothing)

    def _require_usable(self) -> None:
        """Raise `DataError` if there are files and none is usable, so that a run fails before its first step."""
        errors: list[DataError] = []
        for name in self._names():
            try:
                self._read(name)
                return  # one usable file is enough: a run skips the others
            except DataError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _wait(self, step: int) -> None:
        """Return once there is an image that is not held out; raise `DataError` if none comes in time."""
        patience = self._settings.patience
        until = time.monotonic() + patience
        LOG.warning("%s: waiting up to %g s for the first image", self._folder, patience)
        while not len(self._learned):
            left = until - time.monotonic()
            if left <= 0:
                raise DataError(
                    f"{self._folder}: no .npz file with an image to learn from came within {patience:g} s; put one "
                    "there, or set patience higher"
                )
            time.sleep(min(POLL, left))
            self._take_new(step)

    def _take_new(self, step: int) -> None:
        """Add the new files of the folder; skip unusable ones if any file was usable so far."""
        errors: dict[str, DataError] = {}
        for name in self._names():
            if name not in self._taken:
                try:
                    self._take(step, name)
                except DataError as error:
                    errors[name] = error
        # After all files, so that a bad first file is skipped if a later one is usable.
        for name, reason in errors.items():
            if not self.arrived:
                raise reason
            LOG.warning("%s; the file is skipped, put a usable one there under another name", one_line(str(reason)))
            # Into the state too, else a repaired file of that name would join a resumed run but not an unbroken one.
            self._append(Arrival(step, name, 0, 0))
        self._checked = time.monotonic()

    def _names(self) -> list[str]:
        """Names of the .npz files in the folder that are complete by their names, in order."""
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
        """Read a file and add its images."""
        images, labels = self._read(name)
        # Seed 0, not the seed of the run: an image that is held out once is never learned from.
        holdout = Rows(0, f"holdout of {name}").uniform(len(labels), 1)[:, 0] < self._settings.holdout
        self._learned = _extended(self._learned, images[~holdout], labels[~holdout], self._settings.window)
        self.holdout = _extended(self.holdout, images[holdout], labels[holdout], self._most_held)
        return self._append(Arrival(step, name, len(labels), int(holdout.sum())))

    def _append(self, arrival: Arrival) -> Arrival:
        self._taken.add(arrival.name)
        self.arrivals.append(arrival)
        return arrival

    def _read(self, name: str) -> tuple[Tensor, Tensor]:
        """Images uint8 `[N, C, H, W]` and labels int64 `[N]`, all -1 in a file without labels."""
        path = self._folder / name
        # The directory of a zip is at its end, so a file that is still being written is no zip yet.
        if not zipfile.is_zipfile(path):
            raise DataError(
                f"{path} is no whole .npz; write a file under a name that begins with a dot, and rename it when it is "
                "complete"
            )
        arrays = read_arrays(path)
        images = torch.from_numpy(as_images(arrays.images, f"{path}: images"))
        channels = self._settings.channels
        images = alike_in_channels(images, self._spec.channels) if channels is None else in_channels(images, channels)
        if images.shape[1:] != self._spec.shape:
            other = images.shape[1] != self._spec.channels
            remedy = f"set channels to {self._spec.channels}, or convert them" if other else "convert them"
            wanted, got = ("x".join(map(str, shape)) for shape in (self._spec.shape, images.shape[1:]))
            raise DataError(f"{path}: images must be {wanted}, as the teacher's are, got {got}; {remedy}")
        if arrays.labels is None:
            return images, torch.full((len(images),), -1)
        labels = torch.from_numpy(as_labels(arrays.labels, len(images), f"{path}: labels"))
        check_labels(labels, self._spec.classes, str(path))
        return images, labels


def _extended(window: RealImages, images: Tensor, labels: Tensor, most: int) -> RealImages:
    """The newest `most` images of the window and the images after it; each keeps its number."""
    images, labels = torch.cat([window.images[:], images]), torch.cat([window.labels, labels])
    surplus = max(0, len(labels) - most)
    return RealImages(images[surplus:], labels[surplus:], window.first + surplus)
