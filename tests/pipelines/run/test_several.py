"""What several processes are refused, and the number of processes that a run keeps."""

from pathlib import Path
from typing import Any

import pytest

from synthkd.errors import CheckpointError, ConfigError
from synthkd.pipelines import teach
from synthkd.pipelines.config import DistillConfig, TeachConfig
from synthkd.pipelines.run.result import Result
from synthkd.pipelines.run.several import (
    PROCESSES,
    depends_on_processes,
    keep_processes,
    require_same_processes,
    require_shareable,
)
from synthkd.reports.results import RESULT
from synthkd.settings.load import load_config

DIGITS = {"kind": "digits"}
REAL = {"kind": "real", "data": DIGITS}
REFINE = {"phases": [{"kind": "refine", "steps": 4}]}
STUDENT: dict[str, Any] = {"student": {"arch": "mlp"}, "teacher": {"kind": "load", "model": "somewhere"}}
TRAINED = {"kind": "train", "data": DIGITS, "model": {"arch": "mlp", "width": 4, "norm": "group"}}
TEACHER: dict[str, Any] = {
    "data": DIGITS,
    "model": {"arch": "mlp", "width": 4},
    "training": {"steps": 4, "batch_size": 16},
    "device": "cpu",
    "checkpoint_every": 2,
    "sync": "fast",
}
PEERS = {"peers": [{"model": {"arch": "mlp"}}]}


def adapting(name: str) -> dict[str, Any]:
    return {"distill": {"adapt": {name: {}}}}


def fast(changes: dict[str, Any]) -> dict[str, Any]:
    """What processes that share passes can do, since each decides by the whole batch."""
    require_shareable(load_config(DistillConfig, {**STUDENT, **changes}, []), 2)
    return {**changes, "sync": "fast"}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (fast(adapting("temperature")), "distill.adapt.temperature"),
        (fast(adapting("weights")), "distill.adapt.weights"),
        (fast(adapting("strength")), "distill.adapt.strength"),
        (fast({"teachers": [STUDENT["teacher"]], "team": {"weighting": "selected"}}), "team.selection"),
        (fast({"online": PEERS}), "online"),
        (fast({"width": {}}), "width"),
        ({"adapt_batch_size": True}, "adapt_batch_size"),
        ({"distill": {"batch_size": 33}}, "distill.batch_size"),
        ({"transfer_set": {**REAL, "data": {"kind": "stream", "path": "x"}}, **REFINE}, "transfer_set.data.kind"),
        ({"teacher": {**TRAINED, "training": {"dp": {"epsilon": 8.0}}}}, "teacher.training.dp"),
    ],
)
def test_what_two_processes_cannot_do_together_is_refused_by_its_key(changes: dict[str, Any], key: str) -> None:
    config = load_config(DistillConfig, {**STUDENT, **changes}, [])
    require_shareable(config, 1)
    with pytest.raises(ConfigError, match=rf"^{key}\b.*(leave torchrun out|choose a multiple)"):
        require_shareable(config, 2)


def test_a_black_box_is_refused() -> None:
    box = {"kind": "labels", "url": "http://localhost/", "queries": 9, "size": 8, "classes": 10}
    source = {"transfer_set": {"kind": "procedural"}, **REFINE}
    config = load_config(DistillConfig, {**STUDENT, **source, "teacher": box}, [])
    with pytest.raises(ConfigError, match="a black box is asked in one process only; leave torchrun out"):
        require_shareable(config, 2)


@pytest.mark.parametrize("bank", ["fifo", "prioritized", "class_balanced"])
def test_what_they_can_do_is_not(bank: str) -> None:
    policy = {"transfer_set": {"kind": "generated", "bank": {"policy": bank}}}
    require_shareable(load_config(DistillConfig, {**STUDENT, **policy}, []), 2)
    require_shareable(load_config(TeachConfig, TEACHER, []), 4)
    with pytest.raises(ConfigError, match=r"^training.batch_size: 16 images cannot be shared out evenly among 3"):
        require_shareable(load_config(TeachConfig, TEACHER, []), 3)


def test_a_run_is_finished_by_as_many_processes_as_began_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = load_config(TeachConfig, TEACHER, [f"out={run}"])
    assert isinstance(teach(config), Result)
    assert not (run / PROCESSES).exists(), "one process needs no record"
    require_same_processes(run, 1)
    with pytest.raises(ConfigError, match=r"was begun by one process, and 2 processes would give other weights; start"):
        require_same_processes(run, 2)
    keep_processes(run, 2)
    assert isinstance(teach(config), Result), "a finished run is shown by any number"
    (run / RESULT).unlink()  # as if it had been killed; its teacher stands for the checkpoints
    (run / "checkpoints").mkdir(exist_ok=True)
    with pytest.raises(
        ConfigError, match=r"run was begun by 2 processes, and one process .*torchrun --nproc-per-node 2, or choose"
    ):
        teach(config)
    require_same_processes(run, 2)
    with pytest.raises(ConfigError, match="changed: sync"):
        teach(config.model_copy(update={"sync": "exact"}))


def test_where_the_result_is_that_of_one_process_any_number_finishes_it() -> None:
    config = load_config(TeachConfig, {**TEACHER, "sync": "exact"}, [])
    assert not depends_on_processes("teach", config)
    assert depends_on_processes("teach", config.model_copy(update={"sync": "fast"}))
    assert not depends_on_processes("generate", config.model_copy(update={"sync": "fast"}))


def test_a_part_inside_binds_the_run_and_a_run_without_work_is_free(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "teach").mkdir(parents=True)
    keep_processes(run, 2)
    require_same_processes(run, 1)
    keep_processes(run, 1)
    assert not (run / PROCESSES).exists()
    keep_processes(run, 2)
    (run / "teach" / "config.yaml").touch()
    (run / "teach" / RESULT).touch()
    with pytest.raises(ConfigError, match="begun by 2 processes"):
        require_same_processes(run, 1)
    (run / PROCESSES).write_text("{}")
    with pytest.raises(CheckpointError, match=r"processes.json is damaged; restore it"):
        require_same_processes(run, 1)
