"""The report of a run while it goes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from synthkd.reports.report import write_report
from synthkd.training.loop import Action, Values

LOG = logging.getLogger(__name__)
FIRST_SECONDS, SECONDS = 5.0, 30.0
"""The first page is due so long after the start of the run, and each further one so long after the last."""
LARGEST_SHARE = 0.05
"""Of the time of a run that its pages may take, if drawing one takes long."""


class LivePage:
    """Writes `report.html` while the run goes, at most every 30 s; a page that fails is logged once and ends nothing.

    Args:
        directory: the run directory.
        writes: whether this process writes pages; the main process alone does.
        clock: returns seconds and never goes back.
    """

    def __init__(self, directory: Path, writes: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory, self._writes, self._clock = directory, writes, clock
        self._due = clock() + FIRST_SECONDS
        self._failed = False

    def every(self, steps: int) -> Action:
        """The action that writes the page, if it is due, at the end of each interval of so many steps."""
        # With `after`, its time counts as evaluation and not as training.
        return Action("page", self._write, steps, after=True)

    def _write(self, _: int) -> Values:
        if not self._writes or self._clock() < self._due:
            return {}
        started = self._clock()
        try:
            write_report(self._directory)
        except Exception as error:  # the training matters more than its page
            if not self._failed:
                LOG.warning("%s: the page of the run cannot be written: %s", self._directory, error)
            self._failed = True
        ended = self._clock()
        self._due = ended + max(SECONDS, (ended - started) / LARGEST_SHARE)
        return {}
