"""result.json is written from the typed result of its job and read back as the same."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from synthkd.pipelines.run.finished import read_result as read_finished

from synthkd.errors import CheckpointError
from synthkd.metrics.transfer import TransferEfficiency
from synthkd.metrics.utility import proportion
from synthkd.pipelines.run.directory import Result
from synthkd.reports.results import (
    KINDS,
    Agreement,
    DistillResult,
    Evaluations,
    FileEntry,
    FittedGap,
    Hardware,
    ModelDescription,
    ModelResult,
    RaisedAlarm,
    Ratio,
    RunCost,
    StudentResult,
    TeachResult,
    TeamTeacher,
    from_json,
    parse_result,
    read_result,
    result_values,
    to_json,
    write_result,
)
from synthkd.reports.results.codec import OMITTED
from synthkd.system.sealed import unsealed

NETWORK = ModelDescription("convnet width 4", 2182, 8976, 0.1234)
TEACHER = ModelResult.tested(proportion(348, 360), NETWORK)
STUDENT = StudentResult.of_student(
    proportion(340, 360), Agreement.on(proportion(350, 360), "test"), NETWORK, inherited=7
)


def distilled() -> DistillResult:
    return DistillResult(
        name="mine",
        seed=3,
        seconds=1.5,
        real_images_used=None,
        teacher=TEACHER,
        student=STUDENT,
        cost=RunCost({"distill": 1.5}, 40, 200, peak_memory_bytes=9),
        alarms=(RaisedAlarm("collapse", "alike", 0.95, 0.9),),
        evaluations=Evaluations(
            6, 0.5, 0.01, 5, TransferEfficiency(0.5, 1.0, 2.0, "soft", 60), FittedGap(errors=(1.0, None, 2.0)), "peer 1"
        ),
        teachers=(TeamTeacher.of_team("teacher 1", TEACHER, None, 3),),
        peers=(TEACHER,),
        ratio=Ratio(0.3, None),
        interrupted=0,
        files={"student/config.json": FileEntry(10, "ab")},
        hardware=Hardware(cpu="x", cores=2),
    )


@dataclass(frozen=True)
class Inner:
    pair: tuple[int, float]


@dataclass(frozen=True)
class Outer:
    number: float
    word: Literal["a", "b"]
    choice: Inner | str
    some: dict[str, int] = field(default_factory=dict)
    maybe: float | None = None
    inner: Inner | None = field(default=None, metadata=OMITTED)


def test_what_was_written_is_read_as_the_same(tmp_path: Path) -> None:
    write_result(tmp_path, distilled())
    assert read_result(tmp_path) == distilled()
    assert result_values(distilled()) == unsealed((tmp_path / "result.json").read_bytes())


def test_keys_stand_in_the_order_of_the_file() -> None:
    assert list(result_values(distilled())) == [
        "schema", "job", "name", "version", "seed", "finished", "seconds", "real_images_used", "teacher", "student",
        "data", "cost", "alarms", "evaluations", "teachers", "peers", "ratio", "interrupted", "files", "hardware",
    ]  # fmt: skip
    student = result_values(distilled())["student"]
    assert list(student) == [
        "accuracy", "accuracy_interval", "n", "agreement", "agreement_interval", "agreement_n", "agreement_on",
        "arch", "parameters", "bytes", "latency_ms", "inherited_parameters",
    ]  # fmt: skip
    assert student["accuracy_interval"] == list(STUDENT.accuracy_interval or ())


def test_what_was_not_measured_is_null_and_what_does_not_apply_has_no_key() -> None:
    values = result_values(DistillResult(student=StudentResult.of_student(None, Agreement(), NETWORK, 0)))
    assert values["student"] == {
        "accuracy": None, "agreement": None, "arch": "convnet width 4", "parameters": 2182, "bytes": 8976,
        "latency_ms": 0.1234, "inherited_parameters": 0,
    }  # fmt: skip
    assert values["teacher"] is None
    assert not {"teachers", "peers", "ratio", "interrupted"} & set(values)
    assert to_json(Ratio(0.5)) == {"parameters": 0.5}


def test_values_of_a_result_are_those_of_the_file(tmp_path: Path) -> None:
    result = Result(tmp_path, distilled())
    assert result.values["student"]["accuracy"] == STUDENT.accuracy
    assert result.values == result_values(distilled())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Outer(1.5, "a", Inner((1, 2.0)))),
        ({"number": 3}, Outer(3, "a", Inner((1, 2.0)))),
        ({"word": "of another version"}, Outer(1.5, "of another version", Inner((1, 2.0)))),  # type: ignore[arg-type]
        ({"choice": "words"}, Outer(1.5, "a", "words")),
        ({"maybe": "?", "inner": {"pair": [1]}, "unknown": 1}, Outer(1.5, "a", Inner((1, 2.0)))),
        ({"maybe": float("nan")}, Outer(1.5, "a", Inner((1, 2.0)))),
        ({"maybe": True}, Outer(1.5, "a", Inner((1, 2.0)))),
        (
            {"some": {"x": 1}, "inner": {"pair": [1, 2]}},
            Outer(1.5, "a", Inner((1, 2.0)), {"x": 1}, None, Inner((1, 2))),
        ),
    ],
)
def test_numbers_that_may_be_absent_are_none_where_they_are_no_numbers(changes: dict, expected: Outer) -> None:
    source: dict[str, Any] = {"number": 1.5, "word": "a", "choice": {"pair": [1, 2.0]}}
    assert from_json(Outer, source | changes) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"number": "1"}, "Outer.number holds '1'"),
        ({"number": float("inf")}, "Outer.number holds 'inf'"),
        ({"choice": {"pair": [1, "x"]}}, "Outer.choice holds"),
        ({"some": {"x": 1.5}}, "Outer.some.x holds '1.5'"),
        ({"word": None}, "Outer.word holds 'None'"),
    ],
)
def test_what_must_be_there_is_missed(changes: dict, message: str) -> None:
    source: dict[str, Any] = {"number": 1.5, "word": "a", "choice": {"pair": [1, 2.0]}}
    with pytest.raises(ValueError, match=message):
        from_json(Outer, source | changes)
    del source["number"]
    with pytest.raises(ValueError, match=r"Outer\.number is missing"):
        from_json(Outer, source)


def test_each_job_has_its_class() -> None:
    assert {name: kind.__dataclass_fields__["job"].default for name, kind in KINDS.items()} == {
        name: name for name in KINDS
    }
    assert parse_result({"job": "teach", "seconds": 2.0}) == TeachResult(seconds=2.0)
    assert parse_result({}, "teach") == TeachResult()
    for values in ({}, {"job": "cook"}, {"job": None}):
        with pytest.raises(ValueError, match="no result of a job"):
            parse_result(values)


def test_a_file_of_another_job_or_without_its_list_of_files_is_damaged(tmp_path: Path) -> None:
    write_result(tmp_path, TeachResult(seconds=1.0))
    with pytest.raises(CheckpointError, match=r"is damaged \(it is the result of teach\)"):
        read_finished(tmp_path, DistillResult)
    (tmp_path / "result.json").write_text(json.dumps({"job": "teach", "files": ["student"]}))
    with pytest.raises(CheckpointError, match=r"is damaged \(TeachResult.files holds"):
        read_finished(tmp_path, TeachResult)
    (tmp_path / "result.json").unlink()
    assert read_finished(tmp_path, TeachResult) is None


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_result(tmp_path, TeachResult(seconds=float("nan")))
