"""A black box is asked about the images that are known before the first step of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from synthkd.pipelines.run.extension import earlier_queries
from synthkd.pipelines.run.shared_work import rank
from synthkd.pipelines.student.assembly import Assembly
from synthkd.training.display import Display


def ask_ahead(assembly: Assembly, directory: Path, after_call: Callable[[], None] = lambda: None) -> None:
    """Let a black box answer the images that are known before the first step; what was asked before is not repeated.

    Any other teacher does nothing.

    Args:
        assembly: the parts of the run.
        directory: the run directory, whose record of answers the black box has.
        after_call: called after each call of the black box, whose answers are in the record then.

    Raises:
        SynthkdError: what the black box or `after_call` raises.
    """
    black_box = assembly.black_box
    if black_box is None:
        return
    black_box.count_earlier(earlier_queries(assembly.config, directory))
    with Display(black_box.settings.queries, "queries", rank() == 0) as display:

        def progress() -> None:
            display.update(black_box.paid, "ask the black box", {})
            after_call()

        black_box.progress = progress
        assembly.transfer_set.label_ahead()
        black_box.progress = None
