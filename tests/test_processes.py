"""Two processes that share passes get what one process gets: outputs, moments, gradients, samples, images on disk."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch import distributed as dist

from synthkd.data.epochs import EpochSource
from synthkd.data.read.folder import Storage, read_folder
from synthkd.data.read.on_disk import DiskImages
from synthkd.data.sources import RealImages, RealSource
from synthkd.processes import CPU, ONE_PROCESS, Processes
from synthkd.settings import AugmentSettings
from synthkd.taps import observe
from synthkd.types import Outputs


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.Tanh(),
        nn.Conv2d(6, 6, 3, stride=2),
        nn.BatchNorm2d(6, affine=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(54, 5),
        nn.BatchNorm1d(5, track_running_stats=False),
    ).double()


def step(processes: Processes, count: int) -> dict[str, Tensor]:
    """All numbers of a step: a student in training mode beside a frozen teacher, on images with gradient."""
    student, teacher = network(0), network(1).eval().requires_grad_(False)
    images = torch.rand(count, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    images.requires_grad_()
    with processes.norms():
        ours = processes.outputs(lambda rows: observe(student, rows, ["5"]), images)
    theirs, squared = processes.outputs_of_each(
        [lambda rows: observe(teacher, rows, ["5"], statistics=True), lambda rows: Outputs(rows.square().flatten(1))],
        images,
    )
    moments = torch.cat([torch.cat([one.mean, one.var]) for one in theirs.statistics.values()])
    # Products of pairs of rows and variances over rows: no sum over parts of the batch gives them.
    pairs = ours.features["5"].flatten(1) @ theirs.features["5"].flatten(1).T
    loss = pairs.square().mean() + ours.logits.var(0).sum() + squared.logits.std() + moments.square().sum()
    loss.backward()
    processes.add_gradients(student.parameters())
    assert images.grad is not None
    labels = 7 * torch.arange(count - 1)
    return {
        "loss": loss.detach(),
        "images": images.grad,
        "moments": moments.detach(),
        "samples": processes.samples(lambda part, place: part + 100 * (place + torch.arange(len(part))), labels),
        **{f"gradient of {name}": p.grad for name, p in student.named_parameters() if p.grad is not None},
        **dict(student.named_buffers()),
    }  # fmt: skip


def on_disk(processes: Processes, pictures: Path, cache: Path) -> dict[str, Tensor]:
    """Batches of a teacher and of a student from a folder, and which images were decoded for them."""
    result = {}
    for name in ("teacher", "student"):
        read = read_folder(pictures, size=8, storage=Storage(0.0, cache / name, workers=0))
        assert isinstance(read.images, DiskImages)
        if name == "teacher":
            epochs = EpochSource(read.images, read.labels, 6, AugmentSettings(flip=True), 5, CPU, processes)
            drawn = [epochs.batch(step).images for step in range(4)]
        else:
            real = RealSource(RealImages(read.images, read.labels), 5, processes=processes)
            drawn = [real.draw(count, step)[0].images for step, count in enumerate((6, 6, 5, 1))]
        result[name] = torch.cat(drawn)
        result[f"{name}: decoded"] = torch.tensor(
            [not read.images.part(torch.tensor([n])).lacking() for n in range(40)]
        )
    return result


def run_process(rank: int, folder: Path) -> None:
    """Process `rank` of two: writes what it got for an even batch and for one that cannot be divided."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    shared = Processes(rank, 2)
    odd = shared.outputs(lambda rows: Outputs(rows * (rank + 1)), torch.ones(3, 2)).logits
    disk = on_disk(shared, folder / "pictures", folder / f"cache{rank}")
    state = {"weights": [torch.tensor([2.0 * rank, 1.0]), torch.tensor(7)], "name": "Adam", "rate": {"half": 0.5}}
    state["rate"]["halved"] = torch.full((2, 1), 0.5 + rank, dtype=torch.float64)
    joined = {"every": shared.every(torch.tensor([rank, 5])), "mean": shared.mean(state)}
    torch.save({"even": step(shared, 8), "odd": odd, "disk": disk, **joined}, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def meeting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of both processes."""
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def results(meeting: Path) -> list[dict[str, dict[str, Tensor]]]:
    folder = meeting
    for number in range(40):
        path = folder / "pictures" / "ab"[number % 2] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    processes = [subprocess.Popen([sys.executable, __file__, str(rank), str(folder)]) for rank in (0, 1)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_each_of_two_processes_gets_the_numbers_of_one(results: list[dict[str, dict[str, Tensor]]]) -> None:
    alone = step(ONE_PROCESS, 8)
    for result in results:
        assert result["even"].keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(result["even"][name], value, rtol=1e-10, atol=1e-12, msg=name)


def test_a_batch_that_cannot_be_divided_is_run_whole_in_each(results: list[dict[str, dict[str, Tensor]]]) -> None:
    for rank, result in enumerate(results):
        assert torch.equal(torch.as_tensor(result["odd"]), torch.full((3, 2), rank + 1.0))


def test_tensors_of_all_and_means_of_states(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert result["every"].tolist() == [[0, 5], [1, 5]]
        mean = result["mean"]
        assert mean["weights"][0].tolist() == [1.0, 1.0]
        assert mean["weights"][1].dtype == torch.int64
        assert mean["weights"][1] == 7
        assert (mean["name"], mean["rate"]["half"]) == ("Adam", 0.5)
        assert mean["rate"]["halved"].dtype == torch.float64
        assert mean["rate"]["halved"].tolist() == [[1.0], [1.0]]


def test_images_on_disk_are_those_of_one_process_and_each_decodes_its_share(
    results: list[dict[str, Any]], meeting: Path
) -> None:
    alone = on_disk(ONE_PROCESS, meeting / "pictures", meeting / "cache")
    first, second = (result["disk"] for result in results)
    for name in ("teacher", "student"):
        assert torch.equal(first[name], alone[name])
        assert torch.equal(second[name], alone[name])
        decoded = f"{name}: decoded"
        assert torch.equal(first[decoded] | second[decoded], alone[decoded])
    # An epoch has no image twice.
    assert [int(result["disk"]["teacher: decoded"].sum()) for result in results] == [12, 12]
    # By chance a few are drawn by both, and both have the last batch, which is a single image.
    assert int((first["student: decoded"] & second["student: decoded"]).sum()) < 6


if __name__ == "__main__":
    run_process(int(sys.argv[1]), Path(sys.argv[2]))
