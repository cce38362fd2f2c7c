"""The outcome of a run in one or two sentences, no stronger than what was measured."""

from __future__ import annotations

from collections.abc import Sequence

from synthkd.distillation.alarms import NEAR_CHANCE, ONE_CLASS
from synthkd.reports.files import RunFiles
from synthkd.reports.page import count, percent
from synthkd.reports.results import AccuracyEstimate, DistillResult, RaisedAlarm, ReleaseResult, TeachResult
from synthkd.training.monitor import series


def headline(run: RunFiles) -> str:
    """The outcome, with a warning where the trained model answers hardly more than one class.

    Of a broken teacher it says that, not what share of its accuracy a student keeps.
    """
    alarms = {alarm.name: alarm for alarm in find_alarms(run) or ()}
    outcome = _outcome(run)
    if NEAR_CHANCE in alarms:
        message = alarms[NEAR_CHANCE].message
        outcome = f"The teacher is broken, so nothing can be told by comparison with it: {message}."
    if ONE_CLASS in alarms:
        return f"{outcome} Whatever it is shown, it answers one class, or hardly any other."
    return outcome


def find_alarms(run: RunFiles) -> Sequence[RaisedAlarm] | None:
    """The alarms of the result, or those logged so far; None where a finished run does not say."""
    if run.result is None:
        rows = [row for row in run.rows if row.get("kind") == "alarm"]
        return [RaisedAlarm(row.get("name", "alarm"), f"{row['event']} (step {row['step']})") for row in rows]
    return run.result.alarms if isinstance(run.result, TeachResult | DistillResult) else None


def ratio(result: DistillResult, key: str) -> float | None:
    """Student over teacher in accuracy, parameters, bytes or latency_ms: as measured, or from the two numbers."""
    measured: float | None = getattr(result.ratio, key, None)
    student, teacher = getattr(result.student, key), getattr(result.teacher, key, None)
    if measured is None and student is not None and teacher:
        return float(student / teacher)
    return measured


def _outcome(run: RunFiles) -> str:
    result = run.result
    if isinstance(result, DistillResult):
        if result.teacher is None and run.config and run.config.get("teacher") is None:
            return _without_teacher(result, run.has_real_images_alone)
        return _with_teacher(result)
    if isinstance(result, ReleaseResult):
        return f"The generator learned from noisy statistics of {count(result.real_images_used)} private images."
    if isinstance(result, TeachResult):
        accuracy = None if result.teacher is None else result.teacher.accuracy
        if accuracy is None:
            return "The teacher is trained; its accuracy was not measured."
        return f"The teacher reaches {percent(accuracy)} accuracy on test data it never trained on."
    done = max((row["step"] for row in run.rows), default=0)
    planned = f" of {count(run.total_steps)}" if run.total_steps else ""
    accuracies = series(run.rows, "test/accuracy")[1]
    latest = f" The latest test accuracy is {percent(accuracies[-1])}." if accuracies else ""
    return f"This run is not finished: {count(done)}{planned} steps so far.{latest}"


def _with_teacher(result: DistillResult) -> str:
    # The size of the first of several teachers says nothing about all of them together.
    is_single = len(result.teachers or ()) < 2
    who, whose = ("teacher", "teacher’s") if is_single else ("teachers", "teachers’")
    accuracy, share = ratio(result, "accuracy"), ratio(result, "parameters") if is_single else None
    student = result.student
    parts = [] if share is None else [f"has {percent(share)} of its {whose} parameters"]
    if accuracy is not None:
        at_size = "" if share is None else f" at {percent(share)} of its parameters"
        parts = [f"keeps {percent(accuracy)} of its {whose} accuracy{at_size}"]
    elif result.estimate is not None:
        parts.append(_on_real_images(result.estimate, who))
    elif student.agreement is not None:
        images = "test images" if student.agreement_on == "test" else student.agreement_on or "the images compared"
        parts.insert(0, f"agrees with its {who} on {percent(student.agreement)} of {images}")
    else:
        parts.append("was not compared with it" if parts else f"was not compared with its {who}")
    return _sentence([*parts, _real_images(result)])


def _on_real_images(estimate: AccuracyEstimate, who: str) -> str:
    low, high = estimate.interval
    does = f"agrees with its {who} on" if estimate.accuracy is None else "is right on"
    return f"{does} an estimated {percent(estimate.value)} of real images ({percent(low)} to {percent(high)})"


def _without_teacher(result: DistillResult, is_real: bool) -> str:
    student, images = result.student, result.real_images_used
    parts = ["learned from the soft labels of a dataset"]
    if is_real:
        number, peers = "" if images is None else f"{count(images)} ", len(result.peers or ())
        together = f" together with {peers} peer{'' if peers == 1 else 's'}" if peers else ""
        parts = [f"learned from {number}labelled real images{together}"]
    if student.accuracy is not None:
        parts.append(f"reaches {percent(student.accuracy)} accuracy on test data")
    if student.agreement is not None:
        on = student.agreement_on or "the images"
        parts.append(f"agrees with the labels of {percent(student.agreement)} of {on}")
    return _sentence(parts if is_real else [*parts, _real_images(result)])


def _real_images(result: DistillResult) -> str:
    images = result.real_images_used
    if images is None:
        return "saw an unknown number of real images"
    words = "never saw a real image" if images == 0 else f"saw {count(images)} real image{'' if images == 1 else 's'}"
    if result.unrelated_pictures:
        number = result.unrelated_pictures
        words += f" of the task, but crops of {count(number)} unrelated picture{'' if number == 1 else 's'}"
    return words


def _sentence(parts: Sequence[str]) -> str:
    return f"The student {' and '.join(filter(None, [', '.join(parts[:-1]), parts[-1]]))}."
