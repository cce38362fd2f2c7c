"""The page of runs that differ by their seed: mean and spread, and a line of each run."""

from __future__ import annotations

from synthkd.distillation.alarms import NEAR_CHANCE, ONE_CLASS
from synthkd.reports.files import RunFiles
from synthkd.reports.page import SPACE, percent, render
from synthkd.reports.results import SeedsResult, Spread


def seeds_page(run: RunFiles, result: SeedsResult) -> bytes:
    """The page as UTF-8."""
    return render(
        "seeds.html.jinja",
        name=run.name,
        headline=headline(result),
        result=result,
        points=points,
        estimated="intervals of the seeds: " + " to ".join(percent(end) for end in ends_of_estimates(result)),
        between=lambda one: f"{percent(one.low)} to {percent(one.high)}",
        config_text=run.config_text,
    )


def ends_of_estimates(result: SeedsResult) -> tuple[float, ...]:
    """The lowest and the highest end of the intervals of all estimates; nothing without one."""
    ends = [end for one in result.runs if one.estimate is not None for end in one.estimate.interval]
    return (min(ends), max(ends)) if ends else ()


def headline(result: SeedsResult) -> str:
    """Mean and standard deviation of the accuracy in a sentence, or without test data of the agreement.

    Of a broken teacher it says that instead, and it warns where students answer hardly more than one class.
    """
    outcome, broken, constant = _outcome(result), _who_raised(NEAR_CHANCE, result), _who_raised(ONE_CLASS, result)
    if broken:
        outcome = f"With {broken} the teacher is broken, so nothing can be told by comparison with it."
    if constant:
        return f"{outcome} With {constant} the student answers one class, or hardly any other, whatever it is shown."
    return outcome


def _who_raised(name: str, result: SeedsResult) -> str:
    """The seeds whose runs raised an alarm, in words: "seed 0 and seed 2"."""
    raised = [run for run in result.runs if any(alarm.name == name for alarm in run.alarms or ())]
    return " and ".join(f"seed {run.seed}" for run in raised)


def _outcome(result: SeedsResult) -> str:
    for one, what in ((result.accuracy, "have"), (result.agreement, "agree with their teachers on")):
        if one is not None:
            of = "test images right" if what == "have" else "images"
            return f"The students of {one.n} seeds {what} {points(one)} of {of}: mean and standard deviation."
    return f"The students of {len(result.runs)} seeds are finished; nothing was measured of them."


def points(one: Spread) -> str:
    """Mean and standard deviation in percent: "87.31 % (0.42)"."""
    return f"{100 * one.mean:.2f}{SPACE}% ({100 * one.deviation:.2f})"
