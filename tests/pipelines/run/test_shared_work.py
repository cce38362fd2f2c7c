"""Two processes under torchrun, launched once: who works, who waits, what all of them know, and what is told once."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from synthkd.models import build, save
from synthkd.pipelines import audit
from synthkd.pipelines.config import AuditConfig
from synthkd.pipelines.run import shared_work
from synthkd.pipelines.run.result import Result
from synthkd.settings import ZooModel
from synthkd.settings.load import load_config
from synthkd.system.shares import ALONE
from synthkd.types import ImageSpec

SCRIPT = """
import atexit, json, logging, os, sys, time
from accelerate import Accelerator, PartialState
from synthkd.errors import DataError, MissingExtraError
from synthkd.pipelines import cli
from synthkd.pipelines.config import TeachConfig
from synthkd.pipelines.run import shared_work
from synthkd.pipelines.run.device import make_accelerator
from synthkd.settings.load import load_config

rank, seen = int(os.environ["RANK"]), {}
if rank == 1:
    atexit.register(time.sleep, 1)  # last of all, when it has left the group: it ends slowly after its error
config = load_config(TeachConfig, json.load(open("teach.yaml")), [])
seen["before"] = shared_work.count()
outer = make_accelerator(config)
seen["count"], seen["rank"] = shared_work.count(), shared_work.rank()
seen["share"] = list(shared_work.shares().turns("abcde"))
seen["gathered"] = shared_work.shares().values(f"of {rank}")
seen["from_main"] = shared_work.shares().first(lambda: f"of {rank}")

def work():
    shares = shared_work.shares()
    return [rank, shared_work.count(), outer.num_processes, shares.values("alone"), [*shares.turns("abc")]]

def failing():
    raise MissingExtraError("nothing", "none", f"process {rank}")

seen["on_main"] = shared_work.on_main(work)
try:
    shared_work.on_main(failing)
except MissingExtraError as error:
    seen["error"] = str(error)
with shared_work.alone():
    inner = Accelerator(cpu=True)
    seen["alone"] = [shared_work.count(), shared_work.rank(), inner.num_processes, inner.is_main_process]
    seen["alone on_main"] = shared_work.on_main(lambda: f"of {rank}")
    seen["environment"] = "RANK" in os.environ
    print("noise", file=sys.stderr)
seen["after"] = [shared_work.count(), outer.num_processes, PartialState().process_index, os.environ["RANK"]]
make_accelerator(config.model_copy(update={"precision": "bf16"}))  # begins the state of accelerate anew
seen["again"] = shared_work.shares().values(rank)
seen["codes"] = [cli.main(line.split()) for line in open("commands")]

def broken(*_, **__):
    logging.getLogger("synthkd").warning("odd")
    if rank == 1:
        raise DataError("broken here")
    shared_work.shares().values(None)

json.dump(seen, open(f"seen{rank}", "w"))
sys.modules["synthkd.pipelines.teach"].teach = broken
sys.exit(cli.main(["teach", "teach.yaml"]))
"""
DIGITS = {"kind": "digits"}
COMMANDS = """audit audit.yaml out=audited
audit audit.yaml out=audited
audit audit.yaml --dry-run
distill distill.yaml out=refused
teach teach.yaml out=refused nonsense=1
teach teach.yaml out=taught --dry-run
"""
AUDIT: dict[str, Any] = {
    "device": "cpu",
    "teacher": {"kind": "load", "model": "net0"},
    "references": {"teacher": [{"kind": "load", "model": "net1"}, {"kind": "load", "model": "net2"}]},
    "members": {"data": DIGITS, "split": "train"},
    "nonmembers": {"data": DIGITS, "split": "test"},
}
DISTILL: dict[str, Any] = {
    "device": "cpu",
    "teacher": {"kind": "load", "model": "net0"},
    "student": {"arch": "mlp", "width": 4},
    "sync": "fast",
    "online": {"peers": [{"model": {"arch": "mlp", "width": 4}}]},
}
TEACH: dict[str, Any] = {
    "device": "cpu",
    "data": DIGITS,
    "model": {"arch": "mlp", "width": 4},
    "training": {"steps": 2, "batch_size": 16},
}


@dataclass(frozen=True)
class Launch:
    """What two processes saw and said."""

    folder: Path
    seen: tuple[dict[str, Any], dict[str, Any]]
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    folder = tmp_path_factory.mktemp("launch")
    for number in range(3):
        torch.manual_seed(number)
        save(build(ZooModel(arch="mlp", width=4), ImageSpec(1, 8, 8, 10)), folder / f"net{number}", {})
    for name, values in (("audit", AUDIT), ("distill", DISTILL), ("teach", TEACH)):
        (folder / f"{name}.yaml").write_text(json.dumps(values))
    (folder / "script.py").write_text(SCRIPT)
    (folder / "commands").write_text(COMMANDS)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "script.py"],
        cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert (folder / "seen0").exists(), done.stderr[-3000:]
    assert (folder / "seen1").exists(), done.stderr[-3000:]
    seen = tuple(json.loads((folder / f"seen{rank}").read_text()) for rank in (0, 1))
    assert len(seen) == 2
    return Launch(folder, seen, done.stdout, done.stderr)


def test_each_has_its_share_and_knows_what_the_others_found(launch: Launch) -> None:
    one, two = launch.seen
    assert (one["before"], two["before"]) == (1, 1)
    assert [(seen["count"], seen["rank"]) for seen in launch.seen] == [(2, 0), (2, 1)]
    assert (one["share"], two["share"]) == (["a", "c", "e"], ["b", "d"])
    assert one["gathered"] == two["gathered"] == ["of 0", "of 1"]
    assert one["from_main"] == two["from_main"] == "of 0"


def test_the_main_process_works_as_if_it_were_the_only_one(launch: Launch) -> None:
    one, two = launch.seen
    assert one["on_main"] == two["on_main"] == [0, 1, 1, ["alone"], ["a", "b", "c"]]
    assert one["error"] == two["error"]
    assert one["error"].startswith("process 0 needs the package 'nothing'")


def test_alone_a_process_is_the_main_one_and_only_the_real_one_is_heard(launch: Launch) -> None:
    for rank, seen in enumerate(launch.seen):
        assert seen["alone"] == [1, 0, 1, True]
        assert seen["alone on_main"] == f"of {rank}"
        assert seen["environment"] is False
        assert seen["after"] == [2, 2, rank, str(rank)]
        assert seen["again"] == [0, 1]
    assert launch.stderr.count("noise") == 1


def test_a_refusal_is_one_line_and_a_plan_is_printed_once(launch: Launch) -> None:
    one, two = launch.seen
    assert one["codes"] == two["codes"] == [0, 0, 0, 2, 2, 0]
    assert launch.stderr.count("error: online: peers learn together in one process only") == 1
    assert launch.stderr.count("error: nonsense: unknown key") == 1
    assert launch.stdout.count("teach run: digits") == 1
    assert launch.stdout.count("references") == 1, "the plan of the audit"
    assert not (launch.folder / "refused").exists()
    assert not (launch.folder / "taught").exists()


def test_an_error_of_one_process_ends_all_with_its_line_alone(launch: Launch) -> None:
    assert launch.stderr.count("error: broken here") == 1
    assert "another process" not in launch.stderr
    assert "exitcode  : 3" in launch.stderr, "that of the error"
    assert launch.stderr.count("odd") == 1


def test_an_audit_that_they_share_is_that_of_one(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch.stdout.count("audit:   ") == 2
    assert "was complete already" in launch.stdout
    monkeypatch.chdir(launch.folder)
    alone = audit(load_config(AuditConfig, AUDIT, ["out=alone"]))
    assert isinstance(alone, Result)
    reports = [json.loads(Path(run, "privacy_report.json").read_text()) for run in ("alone", "audited")]
    for report in reports:
        del report["checksum"], report["provenance"]["config_sha256"]  # of the name of the run directory
    assert reports[0] == reports[1]


def test_one_process_does_everything_and_waits_for_nobody() -> None:
    assert (shared_work.count(), shared_work.rank()) == (1, 0)
    assert shared_work.on_main(lambda: 5) == 5
    assert shared_work.shares() is ALONE
    assert shared_work.first_to_tell("anything")
    assert shared_work.first_to_tell("anything")
