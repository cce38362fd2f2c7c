"""The launch files: torchrun and synthkd take what they are given, and the schedulers know each key."""

import os
import re
import subprocess
from pathlib import Path
from typing import Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field
from torch.distributed.run import get_args_parser

from synthkd.pipelines import cli

LAUNCH = Path(__file__).parents[1] / "configs" / "launch"
SCRIPTS = ["torchrun.sh", "slurm.sbatch"]
SBATCH = """
    account acctg-freq array batch bb bbf begin chdir cluster-constraint clusters comment constraint container
    contiguous core-spec cores-per-socket cpu-freq cpus-per-gpu cpus-per-task deadline delay-boot dependency
    distribution error exclude exclusive export export-file extra-node-info get-user-env gid gpu-bind gpu-freq gpus
    gpus-per-node gpus-per-socket gpus-per-task gres gres-flags hint hold ignore-pbs input job-name
    kill-on-invalid-dep licenses mail-type mail-user mcs-label mem mem-bind mem-per-cpu mem-per-gpu mincpus network
    nice no-kill no-requeue nodefile nodelist nodes ntasks ntasks-per-core ntasks-per-gpu ntasks-per-node
    ntasks-per-socket open-mode output overcommit oversubscribe parsable partition power prefer priority profile
    propagate qos quiet reboot requeue reservation signal sockets-per-node spread-job switches test-only thread-spec
    threads-per-core time time-min tmp tres-per-task uid use-min-nodes verbose wait wait-all-nodes wckey wrap
"""
"""Long options of sbatch, by its manual."""
FLAGS = {"requeue", "no-requeue", "exclusive", "contiguous", "hold", "overcommit", "parsable", "reboot", "spread-job"}
"""Those that need no value."""
NUMBERS = {"nodes", "ntasks-per-node", "cpus-per-task", "gpus-per-node"}


class Strict(BaseModel):
    """An object of a custom resource; the API server drops keys that it does not know, here they are errors."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Strict):
    name: str = Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)
    namespace: str | None = None
    labels: dict[str, str] = {}


class Resources(Strict):
    limits: dict[str, int | str] = {}
    requests: dict[str, int | str] = {}


class Variable(Strict):
    name: str = Field(pattern=r"^[A-Za-z_]\w*$")
    value: str


class Mount(Strict):
    name: str
    mountPath: str = Field(pattern="^/")
    readOnly: bool = False


class Container(Strict):
    name: str
    image: str
    workingDir: str | None = Field(default=None, pattern="^/")
    command: list[str] = []
    args: list[str] = []
    env: list[Variable] = []
    resources: Resources = Resources()
    volumeMounts: list[Mount] = []


class Claim(Strict):
    claimName: str


class InMemory(Strict):
    medium: Literal["", "Memory"] = ""
    sizeLimit: str | None = None


class Volume(Strict):
    name: str
    persistentVolumeClaim: Claim | None = None
    emptyDir: InMemory | None = None


class PodSpec(Strict):
    containers: list[Container] = Field(min_length=1)
    volumes: list[Volume] = []


class Template(Strict):
    spec: PodSpec


class ReplicaSpec(Strict):
    replicas: int = Field(1, ge=1)
    restartPolicy: Literal["Always", "OnFailure", "Never", "ExitCode"] = "Never"
    template: Template


class ElasticPolicy(Strict):
    minReplicas: int | None = None
    maxReplicas: int | None = None
    rdzvBackend: Literal["c10d", "etcd", "etcd-v2"] = "c10d"
    rdzvPort: int | None = None
    rdzvHost: str | None = None
    rdzvId: str | None = None
    maxRestarts: int | None = Field(None, ge=0)


class RunPolicy(Strict):
    cleanPodPolicy: Literal["", "All", "Running", "None"] | None = None
    ttlSecondsAfterFinished: int | None = None
    activeDeadlineSeconds: int | None = None
    backoffLimit: int | None = None


class JobSpec(Strict):
    pytorchReplicaSpecs: dict[Literal["Master", "Worker"], ReplicaSpec]
    elasticPolicy: ElasticPolicy | None = None
    runPolicy: RunPolicy = RunPolicy()
    nprocPerNode: str | None = Field(None, pattern=r"^(auto|cpu|gpu|\d+)$")


class PyTorchJob(Strict):
    """What is needed of the resource of the training operator (kubeflow.org/v1)."""

    apiVersion: Literal["kubeflow.org/v1"]
    kind: Literal["PyTorchJob"]
    metadata: Metadata
    spec: JobSpec


def job() -> PyTorchJob:
    return PyTorchJob.model_validate(yaml.safe_load((LAUNCH / "pytorchjob.yml").read_text()))


def check_torchrun(words: list[str], recipe: str, out: str) -> dict[str, object]:
    """Check words after `torchrun`, by its own parser and by that of synthkd; returns torchrun's options."""
    options = vars(get_args_parser().parse_args(words))
    assert (options["module"], options["training_script"]) == (True, "synthkd")
    assert options["training_script_args"] == ["distill", recipe, f"out={out}"]
    assert cli._config("distill", options["training_script_args"][1:]).out == out
    return options


@pytest.fixture
def stand_ins(tmp_path: Path) -> dict[str, str]:
    """An environment with programs in place of torchrun and SLURM's; torchrun writes down what it gets."""
    programs = {
        "torchrun": f'printf "%s\\n" "$TORCH_DISABLE_SHARE_RDZV_TCP_STORE" "$@" > {tmp_path}/got',
        "srun": 'exec "$@"',
        "scontrol": '[ "$1 $2 $3" = "show hostnames node[3-4]" ] && printf "node3\\nnode4\\n"',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node[3-4]", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "4"}
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HEAD": "node3", "SLURM_JOB_ID": "77", **slurm}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_shell_and_starts_torchrun_with_what_it_takes(
    name: str, stand_ins: dict[str, str], tmp_path: Path
) -> None:
    subprocess.run(["bash", "-n", LAUNCH / name], check=True)
    subprocess.run(["bash", LAUNCH / name, "digits", "/shared/runs/demo"], check=True, env=stand_ins)
    asks, *words = (tmp_path / "got").read_text().splitlines()
    assert asks == "1"
    options = check_torchrun(words, "digits", "/shared/runs/demo")
    expected = {"nnodes": "2", "rdzv_backend": "c10d", "rdzv_endpoint": "node3:29400", "max_restarts": 3}
    assert {key: options[key] for key in expected} == expected
    assert options["rdzv_id"] == {"torchrun.sh": "synthkd", "slurm.sbatch": "77"}[name]
    assert options["nproc_per_node"] == {"torchrun.sh": "1", "slurm.sbatch": "4"}[name]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_without_its_words_says_how_it_is_called(name: str, stand_ins: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(["bash", LAUNCH / name], capture_output=True, text=True, env=stand_ins)
    assert done.returncode != 0
    assert "usage: " in done.stderr
    assert not (tmp_path / "got").exists()


def test_directives_are_options_of_sbatch_and_stand_before_the_first_command() -> None:
    head, _, body = (LAUNCH / "slurm.sbatch").read_text().partition("\nset ")
    assert "#SBATCH" not in body, "sbatch reads none after the first command"
    directives = [line for line in head.splitlines() if line.startswith("#SBATCH")]
    assert all(line.startswith("#") for line in head.splitlines())
    found = {}
    for line in directives:
        match = re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line)
        assert match is not None, line
        assert match[1] in SBATCH.split(), line
        assert (match[2] is not None) or match[1] in FLAGS, line
        found[match[1]] = match[2]
    assert len(found) == len(directives)
    assert all(value.isdigit() for key, value in found.items() if key in NUMBERS)
    assert re.fullmatch(r"(\d+-)?\d+:\d\d:\d\d", found["time"])
    assert found["open-mode"] in ("append", "truncate")
    assert found["ntasks-per-node"] == "1", "torchrun starts the processes of a machine"


def test_the_job_of_kubernetes_has_the_fields_of_its_schema_and_starts_torchrun() -> None:
    spec = job().spec
    assert spec.elasticPolicy is not None
    (worker,) = spec.pytorchReplicaSpecs.values()
    assert list(spec.pytorchReplicaSpecs) == ["Worker"], "an elastic job has no master"
    assert worker.replicas == spec.elasticPolicy.minReplicas == spec.elasticPolicy.maxReplicas
    pod = worker.template.spec
    (container,) = pod.containers
    assert container.name == "pytorch", "the operator sets variables of this container alone"
    assert container.command[0] == "torchrun"
    options = check_torchrun(container.command[1:], "cifar10", "/runs/demo")
    assert options["nproc_per_node"] == spec.nprocPerNode == str(container.resources.limits["nvidia.com/gpu"])
    assert {"name": "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "value": "1"} in [one.model_dump() for one in container.env]
    volumes = {volume.name: volume for volume in pod.volumes}
    mounts = {mount.mountPath: volumes[mount.name] for mount in container.volumeMounts}
    assert mounts["/runs"].persistentVolumeClaim is not None, "a run outlives its pods"
    assert container.workingDir == "/runs", "the recipe names the file of its teacher without a folder"


def test_the_schema_refuses_a_wrong_key() -> None:
    written = yaml.safe_load((LAUNCH / "pytorchjob.yml").read_text())
    written["spec"]["elasticPolicy"]["max_restarts"] = 3
    with pytest.raises(ValueError, match="max_restarts"):
        PyTorchJob.model_validate(written)
