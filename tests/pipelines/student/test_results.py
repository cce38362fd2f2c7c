"""What a distillation says of itself: its plan beforehand; afterwards an agreement, and the lines that are printed."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from torch import Tensor

from synthkd.data.bank import MemoryBank
from synthkd.data.sources import GeneratedSource
from synthkd.data.written.stored import StoredDataset
from synthkd.data.written.stored_images import StoredImages
from synthkd.distillation.synthesis import Synthesis
from synthkd.distillation.teachers import FrozenTeacher, TeacherTeam
from synthkd.models import Classifier, build, parameters, save
from synthkd.pipelines import distill
from synthkd.pipelines.config import DistillConfig, GeneratedSet
from synthkd.pipelines.student.held_out import FRESH_IMAGES
from synthkd.pipelines.student.image_alarms import Advice, ImageAlarms
from synthkd.pipelines.student.sources import (
    GeneratedImages,
    Labelling,
    StoredDatasetImages,
    TransferSource,
)
from synthkd.pipelines.student.summary import summary
from synthkd.pipelines.student.transfer_set import TransferSet
from synthkd.reports.files import read_run
from synthkd.reports.headline import headline
from synthkd.reports.results import DistillResult, from_json
from synthkd.rng import Rows
from synthkd.schedules import DifficultyScheduler
from synthkd.settings import BankSettings, TeamSettings, ZooModel
from synthkd.settings.load import load_config
from synthkd.training.measuring import unwatched
from synthkd.types import ImageSpec

SPEC = ImageSpec(1, 8, 8, 10)
JUDGE = ImageAlarms(None, torch.device("cpu"), Advice("a", "b", "c"))
DIGITS = {"kind": "digits"}
SOURCE: dict[str, Any] = {
    "name": "mine",
    "student": {"arch": "convnet", "width": 4},
    "inherit": False,
    "transfer_set": {"kind": "real", "data": DIGITS},
    "phases": [{"kind": "refine", "steps": 24}],
    "distill": {"batch_size": 16, "temperature": 4, "alpha": 0.1, "optimizer": {"ema": 0.9}},
    "device": "cpu",
}
ALONE: dict[str, Any] = {"mix": {"mixup": 0.0}}


def network(width: int, seed: int) -> Classifier:
    torch.manual_seed(seed)
    return build(ZooModel(arch="convnet", width=width), SPEC)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("teacher") / "model"
    save(network(6, 0), path)
    return {"kind": "load", "model": str(path)}


def config_of(*overrides: str, **changes: Any) -> DistillConfig:
    return load_config(DistillConfig, {**SOURCE, **changes}, list(overrides))


# --- beforehand -----------------------------------------------------------------------------------------------------


def planned(*overrides: str, **changes: Any) -> list[str]:
    """The lines of the plan on what is learned from: those between the images and the phases."""
    lines = str(distill(config_of(*overrides, **changes), dry_run=True)).splitlines()
    places = [
        next(n for n, line in enumerate(lines) if line.startswith(f"  {key}:")) for key in ("test images", "phases")
    ]
    return [line.strip() for line in lines[places[0] + 1 : places[1]]]


def test_the_plan_shows_each_term_that_ever_has_a_weight(teacher: dict[str, Any]) -> None:
    assert planned(teacher=teacher) == ["term soft: weight 0.9, temperature 4", "term hard: weight 0.1"]
    assert planned("distill.alpha={kind: cosine, start: 0, end: 1}", "distill.standardise=true", teacher=teacher) == [
        "term soft: weight 1 to 0 (cosine), temperature 4, standardised", "term hard: weight 0 to 1 (cosine)"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("term", "said"),
    [
        (
            {"kind": "hint", "weight": 0.5},
            "weight 0.5, body.stage1 -> body.stage1, body.stage2 -> body.stage2, body.stage3 -> body.stage3, "
            "body.head:input -> body.head:input",
        ),
        ({"kind": "attention", "at": [["body.stage1", "body.stage3"]]}, "weight 1, body.stage1 -> body.stage3"),
        ({"kind": "rkd_angle"}, "weight 1, body.head:input -> body.head:input"),
        ({"kind": "sskd"}, "weight 100, body.head:input -> body.head:input"),
        ({"kind": "dkd", "weight": 2.0}, "weight 2"),
        ({"kind": "exits"}, "weight 1, at body.stage1, body.stage2"),
    ],
)
def test_the_plan_says_where_networks_are_compared(teacher: dict[str, Any], term: dict[str, Any], said: str) -> None:
    lines = planned(teacher=teacher, distill={**SOURCE["distill"], "transfer": [term]})
    assert f"term {term['kind']}: {said}" in lines
    assert len(lines) == 3


def test_the_plan_names_several_teachers_and_how_they_are_weighed(teacher: dict[str, Any], tmp_path: Path) -> None:
    save(network(5, 1), tmp_path / "other")
    more = {"teacher": teacher, "teachers": [{"kind": "load", "model": str(tmp_path / "other")}]}
    plan = str(distill(config_of(**more, team={"weights": [3, 0.5]}), dry_run=True))
    assert (
        f"\n  teacher 2: {parameters(network(5, 1)):,} parameters\n  team: 2 teachers, weighting fixed 3, 0.5\n" in plan
    )
    selected = {**more, "team": {"weighting": "selected"}, "distill": {**SOURCE["distill"], "adapt": {"every": 7}}}
    assert "\n  team: 2 teachers, weighting selected\n" in str(distill(config_of(**selected), dry_run=True))
    assert planned(**selected)[-1] == "adapts: who teaches; evaluated every 7 steps"
    assert "team" not in str(distill(config_of(teacher=teacher), dry_run=True))


def test_the_plan_shows_who_teaches_whom_and_what_adapts() -> None:
    changes = {
        "online": {"peers": [{"model": {"arch": "mlp", "width": 12}}], "averaged": True, "temperature": 2, "swap": {}},
        "distill": {
            "batch_size": 16, "alpha": 0.25, "optimizer": {"ema": 0.9}, "average": 0.5,
            "adapt": {"every": 6, "temperature": {"start": 3}},
        },
    }  # fmt: skip
    assert planned(**ALONE, **changes) == [
        "term soft: weight 0.75, temperature 3 at first",
        "term hard: weight 0.25",
        "term average: weight 0.5",
        "term mutual: weight 1, answers by the others' averages, temperature 2",
        "swap: peer 1 teaches at first, another from above 95% of its accuracy, armed again below 90%",
        "adapts: temperature, who teaches; evaluated every 6 steps",
    ]


# --- afterwards: agreement ------------------------------------------------------------------------------------------


class Fixed:
    """A generator of images that are a function of their number."""

    def sample(self, labels: Tensor, difficulty: float, rng: Rows) -> Tensor:
        return rng.uniform(len(labels), 64).reshape(-1, 1, 8, 8).float()


def fresh(labelling: Labelling) -> tuple[TransferSource, Tensor]:
    images = torch.cat(
        [Fixed().sample(torch.zeros(100), 0.0, Rows(0, "fresh", n)) for n in range(0, FRESH_IMAGES, 100)]
    )
    generator: Any = Fixed()
    bank, settings = MemoryBank(SPEC, BankSettings(capacity=10), 0), GeneratedSet()
    difficulty = DifficultyScheduler(settings.difficulty)
    rounds = Synthesis(generator, bank, difficulty, lambda: network(4, 3))
    source = GeneratedSource(bank)
    return GeneratedImages(generator, settings, source, difficulty, rounds, labelling, JUDGE, 0, 0, True), images


def stored(labelling: Labelling) -> tuple[TransferSource, Tensor]:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4000, 1, 8, 8), dtype=torch.uint8, generator=rng)
    # what the dataset's own teacher said is class 0 throughout, and is not what is asked
    labels, logits = torch.zeros(4000, dtype=torch.int64), torch.eye(10)[:1].repeat(4000, 1)
    dataset = StoredImages(StoredDataset(images, labels, logits, SPEC, (0.5,), (0.5,), (), {}))
    bank = MemoryBank(SPEC, BankSettings(capacity=4000), 0)
    source = StoredDatasetImages(dataset, bank, labelling, JUDGE, fresh=True, real_images_used=0)
    return source, dataset.held_out.images


@pytest.mark.parametrize("source", [fresh, stored])
def test_agreement_goes_by_all_teachers_whoever_was_selected_last(
    source: Callable[[Labelling], tuple[TransferSource, Tensor]],
) -> None:
    student, *models = (network(4, seed).eval() for seed in (3, 4, 5))
    selection: Any = SimpleNamespace(selected=0)
    teachers = [FrozenTeacher(model, Accelerator(cpu=True)) for model in models]
    team = TeacherTeam(teachers, TeamSettings(weighting="selected"), selection)
    transfer_images, images = source(Labelling(team, torch.device("cpu"), count=60))
    with torch.no_grad():
        learned, *taught = (model(images) for model in (student, *models))
    expected, *alone = (
        float((learned.argmax(1) == said.argmax(1)).float().mean()) for said in (sum(taught) / 2, *taught)
    )
    assert len({expected, *alone}) == 3, "each alone would say something else"
    for number in (0, 1):
        selection.selected = number
        assert team.selected == number
        (agreement,) = transfer_images.agreements([student])
        assert agreement.rate.value == pytest.approx(expected, abs=1e-6)
        assert agreement.rate.n == len(images)


# --- afterwards: what is printed ------------------------------------------------------------------------------------

STUDENT = {
    "accuracy": 0.9694, "accuracy_interval": [0.9462, 0.9828], "n": 360, "parameters": 19770,
    "agreement": 0.9722, "agreement_interval": [0.95, 0.98], "agreement_n": 360, "agreement_on": "test",
}  # fmt: skip
TEACHER = {"accuracy": 0.9861, "accuracy_interval": [0.9679, 0.9941], "n": 360, "parameters": 78042}
UNTESTED = {"accuracy": None, "parameters": 412345}
VALUES: dict[str, Any] = {
    "job": "distill", "real_images_used": 0, "teacher": TEACHER, "student": STUDENT,
    "ratio": {"accuracy": 0.9831, "parameters": 0.2533}, "alarms": [],
}  # fmt: skip


def printed(values: dict[str, Any], directory: Path, config: DistillConfig, **more: Any) -> list[str]:
    job: Any = SimpleNamespace(directory=directory, config=config)
    return [line.replace(str(directory), "RUN") for line in summary(job, from_json(DistillResult, values), **more)]


def test_what_is_printed_begins_as_the_report_does(tmp_path: Path) -> None:
    config = config_of(teacher={"kind": "load", "model": "t"})
    lines = printed(VALUES, tmp_path, config)
    assert lines == [
        "The student keeps 98.3% of its teacher's accuracy at 25.3% of its parameters and never saw a real image.",
        "student: 96.94% of 360 test images right (95% interval 94.6% to 98.3%), 19,770 parameters, saved in "
        "RUN/student",
        "         agrees with its teacher on 97.22% of 360 test images",
        "teacher: 98.61% of 360 test images right (95% interval 96.8% to 99.4%), 78,042 parameters",
        "report:  RUN/report.html",
    ]
    (tmp_path / "result.json").write_text(json.dumps(VALUES))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    shown = headline(read_run(tmp_path))
    assert shown.replace("\N{NO-BREAK SPACE}%", "%").replace("\N{RIGHT SINGLE QUOTATION MARK}", "'") == lines[0]
    assert "".join(lines).isascii(), "any terminal can show it"
    assert printed(VALUES, tmp_path, config, already=True) == ["RUN was complete already; nothing was run", *lines]


def test_a_broken_teacher_is_no_success(tmp_path: Path) -> None:
    """A student that agrees with a teacher of random weights keeps all of its accuracy, and that is nothing."""
    keys = {"channels": 1, "size": 8, "classes": 10, "untrained": True}
    teacher = {"kind": "load", "model": "zoo:convnet", "options": {"width": 8}, **keys}
    result = distill(config_of(teacher=teacher, test=DIGITS, out=str(tmp_path / "run")))
    line = result.summary[0]
    assert line.startswith("The teacher is broken, so nothing can be told by comparison with it: the teacher is ")
    assert "where chance is 10.0%: check its mean, std, size and weights." in line
    assert not any("keeps" in line for line in result.summary)
    assert next(line for line in result.summary if line.startswith("alarm:")).startswith("alarm:   broken teacher: ")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "The teacher is broken" in page
    assert "keeps" not in page


def test_every_network_has_a_line_and_each_number_is_of_the_network_named(tmp_path: Path) -> None:
    several = [{"name": "teacher 1", **TEACHER}, {"name": "teacher 2", **TEACHER, "accuracy": 0.9, "parameters": 99}]
    more = {"teachers": several, "teacher": TEACHER | {"accuracy": 0.9972}, "real_images_used": 1294}
    peers = [TEACHER | {"accuracy": 0.5, "parameters": 7}, TEACHER | {"accuracy": 0.25, "parameters": 8}]
    raised = [{"name": "collapse", "message": "samples look alike"}]
    lines = printed(
        {**VALUES, **more, "peers": peers, "alarms": raised},
        tmp_path,
        config_of(teacher={"kind": "load", "model": "t"}),
    )
    right = "of 360 test images right (95% interval 96.8% to 99.4%)"
    assert lines[0] == "The student keeps 98.3% of its teachers' accuracy and saw 1,294 real images."
    assert lines[2:] == [
        "           agrees with its teachers on 97.22% of 360 test images",
        f"peer 1:    50.00% {right}, 7 parameters, saved in RUN/peers/1",
        f"peer 2:    25.00% {right}, 8 parameters, saved in RUN/peers/2",
        f"teachers:  99.72% {right}, together",
        f"teacher 1: 98.61% {right}, 78,042 parameters",
        f"teacher 2: 90.00% {right}, 99 parameters",
        "alarm:     collapse: samples look alike",
        "report:    RUN/report.html",
    ]


def test_without_test_data_or_teacher_nothing_is_said_of_them(tmp_path: Path) -> None:
    untested = STUDENT | {"accuracy": None, "agreement_on": "fresh synthetic samples", "agreement_n": 500}
    values = VALUES | {"student": untested, "teacher": UNTESTED, "ratio": {"parameters": 0.25}}
    lines = printed(values, tmp_path, config_of(teacher={"kind": "load", "model": "t"}))
    assert lines[:4] == [
        "The student agrees with its teacher on 97.2% of fresh synthetic samples, has 25.0% of its teacher's "
        "parameters and never saw a real image.",
        "student: no real test data, 19,770 parameters, saved in RUN/student",
        "         agrees with its teacher on 97.22% of 500 fresh synthetic samples",
        "teacher: no real test data, 412,345 parameters",
    ]
    estimate: dict[str, Any] = {"agreement": 0.71, "agreement_interval": [0.6, 0.8], "runs": 20, "covered": 19}
    more = {"estimate": estimate, "advice": ["run longer", "look"]}
    lines = printed(values | more, tmp_path, config_of(teacher={"kind": "load", "model": "t"}))
    assert lines[3] == (
        "estimate: agreement with its teacher on real images without test data about 71% (interval 60% to 80%, which "
        "held in 19 of 20 runs)"
    )
    assert lines[-3:-1] == ["advice:   run longer", "advice:   look"]
    estimate |= {"accuracy": 0.68, "accuracy_interval": [0.57, 0.77], "teacher_accuracy": 0.9}
    lines = printed(values | more, tmp_path, config_of(teacher={"kind": "load", "model": "t"}))
    assert lines[3].startswith("estimate: accuracy without test data about 68% (interval 57% to 77%, ")
    alone = {**VALUES, "teacher": None, "student": STUDENT | {"agreement": None}, "real_images_used": 1294}
    lines = printed({**alone, "peers": [UNTESTED]}, tmp_path, config_of("distill.alpha=1", **ALONE))
    assert lines[0] == (
        "The student learned from 1,294 labelled real images together with 1 peer and reaches 96.9% accuracy on test "
        "data."
    )
    assert [line.split(":")[0] for line in lines[1:]] == ["student", "peer 1", "report"]


def test_images_of_earlier_rounds_are_not_called_fresh() -> None:
    teacher, other = network(4, 0).eval(), network(4, 1).eval()
    labelling = Labelling(
        TeacherTeam([FrozenTeacher(teacher, Accelerator(cpu=True))], TeamSettings()), torch.device("cpu"), 20
    )

    def sample(labels: Tensor, rng: Rows) -> Tensor:
        return rng.uniform(len(labels), 64).reshape(-1, 1, 8, 8)

    for repeats, on in ((False, "fresh synthetic samples"), (True, "images of the generator's earlier rounds")):
        agreement, of_other = labelling.on_samples([teacher, other], sample, Rows(0, "fresh"), unwatched, repeats)
        assert (agreement.on, agreement.rate.value) == (on, 1.0)
        assert 0 < of_other.rate.value < 1


@pytest.mark.parametrize(("counts", "used"), [((0, 300), 300), ((1294, 900), 2194), ((None, 900), None)])
def test_real_images_of_several_sources_are_added_up(counts: tuple[int | None, int], used: int | None) -> None:
    sources: list[Any] = [
        SimpleNamespace(real_images_used=count, bank=None, state={}, held_out_rank=rank)
        for rank, count in enumerate(counts)
    ]
    dataset: Any = None
    assert TransferSet(sources, dataset).real_images_used == used
