"""Two processes that each make rounds of their own: what each gets, and where the generator goes on."""

import copy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch import distributed as dist

from synthkd.generators.build import build_generator
from synthkd.generators.inversion import Inversion
from synthkd.generators.own_rounds import OwnRounds, averages, of_a_round
from synthkd.generators.settings import InversionSettings, PixelSettings
from synthkd.models import Classifier, build
from synthkd.processes import Processes
from synthkd.settings import ZooModel
from synthkd.types import ImageSpec, Round

SETTINGS = InversionSettings(kind="inversion", batch_size=4, steps=2, latent=8, width=4, adversarial=1.0)


def teacher(seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    network = build(ZooModel(arch="convnet", width=4), ImageSpec(1, 8, 8, 3)).eval()
    return network.requires_grad_(False)


def generator() -> Inversion:
    return Inversion(SETTINGS, teacher(), 0, Accelerator(cpu=True), rounds_at_once=2)


def run_process(rank: int, folder: Path) -> None:
    """Process `rank` of two: three rounds, of which the last one is made after a resume."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    own, student = generator(), teacher(1)
    rounds = OwnRounds(own, Processes(rank, 2))
    first = rounds.round(0, 0.5, student)
    state = {"generator": own.state_dict(), "rounds": rounds.state_dict()}
    torch.save(state, folder / f"state{rank}.pt")
    again = generator()
    resumed = OwnRounds(again, Processes(rank, 2))
    saved = torch.load(folder / f"state{rank}.pt", weights_only=True)
    goes_on = copy.deepcopy(saved["generator"])
    again.load_state_dict(saved["generator"])
    resumed.load_state_dict(saved["rounds"])
    torch.save(
        {
            "rounds": [vars(one) for one in (first, resumed.round(1, 0.5, student), resumed.round(2, 0.5, student))],
            "third": vars((rounds.round(1, 0.5, student), rounds.round(2, 0.5, student))[1]),
            "generator": goes_on,
        },
        folder / f"{rank}.pt",
    )
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("own_rounds")
    processes = [subprocess.Popen([sys.executable, __file__, str(rank), str(folder)]) for rank in (0, 1)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_rounds_of_a_group_start_from_one_state(results: list[dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    alone = [generator(), generator()]
    expected = [one.round(index, 0.5, teacher(1)) for index, one in enumerate(alone)]
    for result in results:
        for got, wanted in zip(result["rounds"], expected, strict=False):
            torch.testing.assert_close(got["images"], wanted.images)
            torch.testing.assert_close(got["teacher_logits"], wanted.teacher_logits)
            assert got["labels"].tolist() == wanted.labels.tolist()
            assert got["terms"] == pytest.approx(dict(wanted.terms), rel=1e-5)
    networks: list[dict[str, Tensor]] = [one.state_dict()["network"] for one in alone]
    for name, value in results[0]["generator"]["network"].items():
        torch.testing.assert_close(value, (networks[0][name] + networks[1][name]) / 2, check_dtype=False)


def test_processes_agree_also_after_a_resume(results: list[dict[str, Any]]) -> None:
    one, two = results
    assert list(one["generator"]) == ["network", "meta", "moments"]
    for ours, theirs in zip(one["rounds"], two["rounds"], strict=True):
        assert torch.equal(ours["images"], theirs["images"])
    assert torch.equal(one["rounds"][2]["images"], one["third"]["images"]), "as without the resume"
    assert not torch.equal(one["rounds"][0]["images"], one["rounds"][2]["images"])


def test_the_mean_of_several_rounds_moves_further_and_forgets_more() -> None:
    settings = SETTINGS.model_copy(update={"memory": 0.8})
    one, four = (Inversion(settings, teacher(), 0, Accelerator(cpu=True), rounds_at_once=count) for count in (1, 4))
    rates = [each.state_dict()["meta"]["param_groups"][0]["lr"] for each in (one, four)]
    assert rates[1] == pytest.approx(2 * rates[0])
    moments = []
    for each in (one, four):
        first = each.round(0, 0.5) and each.state_dict()["moments"]
        # Those of the second round without memory, from what is left of the first.
        each.load_state_dict({**one.state_dict(), "moments": {path: [0 * m, 0 * v] for path, (m, v) in first.items()}})
        each.round(1, 0.5)
        moments.append(next(iter(each.state_dict()["moments"].values()))[0])
    # Of moments that were 0, (1 - memory) of the new ones are kept, for the first step alone much the same.
    ratio = float((moments[1] / moments[0]).median())
    assert ratio == pytest.approx((1 - 0.8**4) / (1 - 0.8), rel=0.3)


def test_rounds_before_there_is_a_student_are_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, bool]] = []

    class Counting:
        def round(self, index: int, difficulty: float, student: object = None) -> Round:
            asked.append((index, student is not None))
            return Round(torch.full((1, 1, 2, 2), index / 10), torch.zeros(1).long(), torch.zeros(1, 3), {"loss": 1.0})

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: object) -> None:
            assert state == {}

    monkeypatch.setattr(Processes, "every", lambda _, value: torch.stack([value, value]))
    monkeypatch.setattr(Processes, "mean", lambda _, state: state)
    counting: Any = Counting()
    rounds = OwnRounds(counting, Processes(0, 2))
    for index, student in ((0, None), (1, None), (2, None), (3, teacher()), (4, teacher()), (5, teacher())):
        rounds.round(index, 0.5, student)
    assert asked == [(0, False), (2, False), (3, True), (5, True)]


def test_processes_share_a_round_unless_each_makes_its_own() -> None:
    accelerator: Any = SimpleNamespace(process_index=1, num_processes=2, device=torch.device("cpu"))
    assert of_a_round(accelerator, 1) == Processes(1, 2)
    assert of_a_round(accelerator, 2) == Processes(0, 1)


def test_only_weights_and_moments_are_averaged() -> None:
    assert averages(SETTINGS)
    assert not averages(PixelSettings(kind="pixels")), "the mean of earlier images would be no image"
    built = build_generator(SETTINGS, teacher(), 0, Accelerator(cpu=True), rounds_at_once=1)
    assert isinstance(built, Inversion), "one process shares with nobody, and makes the same rounds"
    ours, theirs = (one.round(0, 0.5).images for one in (built, Inversion(SETTINGS, teacher(), 0)))
    assert torch.equal(ours, theirs)


if __name__ == "__main__":
    run_process(int(sys.argv[1]), Path(sys.argv[2]))
