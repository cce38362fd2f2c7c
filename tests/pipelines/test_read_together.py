"""Two processes under torchrun, launched once: each reads its share of the files, and both know what one would."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from synthkd.data.read.folder import Storage, read_folder
from synthkd.data.read.on_disk import DiskImages
from synthkd.errors import DataError
from tests.data.read.test_listing import folder
from tests.data.read.test_on_disk import damaged, pictures

COUNT = 21
SCRIPT = """
import atexit, json, os, sys
from pathlib import Path
import torch
from torch import distributed
# It is called after what the job registers.
atexit.register(lambda: Path(f"left{os.environ['RANK']}").write_text(str(not distributed.is_initialized())))
from synthkd.data.read import on_disk
from synthkd.data.read.folder import Storage, read_folder
from synthkd.errors import DataError
from synthkd.pipelines.run.shared_work import alone, on_main, shares
from synthkd.pipelines.config import DistillConfig, TeachConfig
from synthkd.pipelines.run.device import process_state
from synthkd.pipelines import distill, teach
from synthkd.settings.load import load_config
from synthkd.system.shares import of_all, together

rank, seen, read, decoded = os.environ["RANK"], {}, [], []
survey, decode = on_disk._surveyed, on_disk.decode
on_disk._surveyed = lambda entry, *rest: read.append(entry.name) or survey(entry, *rest)
on_disk.decode = lambda *rest: decoded.append(1) or decode(*rest)

def teaching(name):
    data = {"kind": "folder", "root": "whole", "size": 8, "memory": 0.0, "cache": f"cache.{name}", "workers": 0}
    return {"data": data, "model": {"arch": "mlp", "width": 8}, "training": {"steps": 2, "batch_size": 6},
            "device": "cpu", "out": f"taught.{name}"}

def reads(job, config, content):
    read.clear()
    job(load_config(config, content, []))
    return len(read)

seen["teach"] = reads(teach, TeachConfig, teaching("alone"))
read.clear()
source = teaching("distil")
seen["distill"] = reads(distill, DistillConfig, {
    "teacher": {"kind": "load", "model": "taught.alone"}, "student": source["model"], "inherit": False,
    "transfer_set": {"kind": "real", "data": source["data"]}, "phases": [{"kind": "refine", "steps": 1}],
    "distill": {"batch_size": 6}, "device": "cpu", "out": "distilled",
})
process_state(load_config(TeachConfig, teaching("again"), []))

def end(path, **keys):
    read.clear()
    decoded.clear()
    try:
        with together(shares()):
            source = read_folder(path, storage=Storage(0.0, Path(f"cache.{rank}"), workers=0), size=8, **keys)
    except DataError as error:
        return str(error)
    counts = len(read), len(decoded)
    digests = source.images.files.digests.tolist()
    torch.save((source.images[:], source.labels, digests, source.notes), f"{path}{rank}.pt")
    return counts

seen["whole"] = end("whole")
seen["bad"] = end("bad")
seen["left out"] = end("bad", skip_bad=True)
seen["one more"] = end("whole" if rank == "0" else "more")
seen["renamed"] = end("whole" if rank == "0" else "renamed")
seen["missing"] = end("whole" if rank == "0" else "nowhere")
with together(shares()), alone():
    seen["each alone"] = of_all().world
seen["one alone"] = [on_main(lambda: end("whole")), shares().first(lambda: of_all().world), of_all().world]
Path(f"seen{rank}.json").write_text(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have read sets of images."""
    top = tmp_path_factory.mktemp("together")
    files = pictures(COUNT, "PNG")
    folder(top / "whole", files)
    folder(top / "more", {**files, "a/zz.png": files["a/00.png"]})
    folder(top / "renamed", {name.replace("a/00", "a/000"): content for name, content in files.items()})
    folder(top / "bad", {**damaged(files, "b/01.png"), "c/20.png": b"no image"})
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "run.py"]
    (top / "run.py").write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, cwd=top, env=environment, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return top


@pytest.fixture
def seen(place: Path) -> list[dict[str, Any]]:
    """What each process found."""
    return [json.loads((place / f"seen{rank}.json").read_text()) for rank in range(2)]


def test_each_reads_its_share_in_the_jobs_that_train(seen: list[dict[str, Any]]) -> None:
    for job in ("teach", "distill"):
        assert [one[job] for one in seen] == [COUNT - COUNT // 2, COUNT // 2], job
    assert [one["whole"][0] for one in seen] == [COUNT - COUNT // 2, COUNT // 2]
    # With skip_bad each decodes its share of the others, too, and the second one tries what is no image as it reads it.
    assert [one["left out"] for one in seen] == [[COUNT - COUNT // 2, 10], [COUNT // 2, 10 + 1]]


def test_each_leaves_the_group_before_its_interpreter_ends(place: Path) -> None:
    assert [(place / f"left{rank}").read_text() for rank in range(2)] == ["True", "True"]


def test_all_know_what_one_process_would(place: Path, tmp_path: Path) -> None:
    storage = Storage(0.0, tmp_path, workers=0)
    bad = place / "bad"
    whole = read_folder(bad, size=8, skip_bad=True, storage=storage)
    assert isinstance(whole.images, DiskImages)
    for rank in range(2):
        images, labels, digests, notes = torch.load(place / f"bad{rank}.pt")
        assert torch.equal(images, whole.images[:])
        assert torch.equal(labels, whole.labels)
        assert digests == whole.images.files.digests.tolist()
        assert list(notes[1:]) == [note.replace(str(bad), "bad") for note in whole.notes[1:]]
    assert "2 unreadable files left out" in whole.notes[1]


def test_an_error_of_one_is_the_error_of_all(place: Path, seen: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(DataError) as alone:
        read_folder(place / "bad", size=8, storage=Storage(0.0, tmp_path, workers=0))
    assert [one["bad"] for one in seen] == [str(alone.value).replace(str(place / "bad"), "bad")] * 2
    for key in ("missing", "one more", "renamed"):
        assert seen[0][key].split(": ", 1)[1] == seen[1][key].split(": ", 1)[1], key
    assert seen[0]["missing"] == "process 1: nowhere does not exist; check the path"
    assert "process 1 finds 22 images here, and process 0 finds 21 or others" in seen[0]["one more"]
    assert "process 1 finds 21 images here, and process 0 finds 21 or others" in seen[1]["renamed"]


def test_the_main_process_alone_reads_everything(seen: list[dict[str, Any]]) -> None:
    assert [one["one alone"] for one in seen] == [[[COUNT, 0], 1, 1]] * 2
    assert [one["each alone"] for one in seen] == [1, 1]
