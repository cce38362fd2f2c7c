"""A dataset is the same bytes however it is cut up, interrupted or shared out, and says what it is."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import SafetensorError
from torch import Tensor

from synthkd.data.written import unfinished as part_files
from synthkd.data.written.stored import read_stored
from synthkd.data.written.unfinished import PartStore
from synthkd.errors import CheckpointError, ConfigError, DataError, ModelError
from synthkd.generators.continuous import Continuous
from synthkd.generators.files import save_generator
from synthkd.generators.inversion import Inversion
from synthkd.generators.method_settings import ContinuousSettings
from synthkd.generators.settings import MerfSettings
from synthkd.models import load
from synthkd.pipelines import generate, teach
from synthkd.pipelines.config import GenerateConfig, TeachConfig
from synthkd.pipelines.dataset import sampling
from synthkd.pipelines.dataset.request import class_counts
from synthkd.pipelines.run import disk
from synthkd.pipelines.run.result import Plan, Result
from synthkd.rng import Rows
from synthkd.settings.load import load_config
from synthkd.system.sealed import unsealed
from synthkd.types import ImageSpec, Round

NAMES = ("zero", "one", "two", "three")


class Wave:
    """A generator of plain waves: quick, and it fails as soon as a batch is another than it has to be."""

    def __init__(self, teacher: torch.nn.Module, seed: int, slow: float = 0.0) -> None:
        self.spec = teacher.spec
        self._slow = slow

    def sample(self, labels: Tensor, difficulty: float, rng: Rows) -> Tensor:
        assert len(labels) == sampling.CHUNK
        assert rng.start % sampling.CHUNK == 0
        time.sleep(self._slow)
        noise = rng.uniform(len(labels), 64).reshape(-1, 1, 8, 8)
        phase = torch.linspace(0, 6.28, 8) * (labels.view(-1, 1, 1, 1) + 1)
        return (0.5 + 0.4 * phase.sin() * (1 - difficulty) + 0.1 * noise + 1e-3 * noise.mean(0)).clamp(0, 1)

    def round(self, index: int, difficulty: float, student: torch.nn.Module | None = None) -> Round:
        raise AssertionError("it is not trained")

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        assert not state


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A digits teacher, trained for a second."""
    out = tmp_path_factory.mktemp("taught") / "run"
    recipe = {
        "data": {"kind": "digits"},
        "model": {"arch": "convnet", "width": 8},
        "training": {"steps": 40, "batch_size": 64},
        "device": "cpu",
    }
    result = teach(load_config(TeachConfig, recipe, [f"out={out}"]))
    assert isinstance(result, Result)
    return out


def recipe(teacher: Path, /, **changes: object) -> dict[str, object]:
    waves = {"kind": "python", "target": f"{__name__}:Wave"}
    base = {"teacher": {"kind": "load", "model": str(teacher)}, "generator": waves, "per_class": 20, "device": "cpu"}
    return {**base, **changes}


def made(teacher: Path, out: Path, /, **changes: object) -> Result:
    result = generate(load_config(GenerateConfig, recipe(teacher, **changes), [f"out={out}"]))
    assert isinstance(result, Result)
    return result


def files(run: Path) -> dict[str, bytes]:
    top = run / "dataset"
    return {str(path.relative_to(top)): path.read_bytes() for path in sorted(top.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("form", ["folder", "webdataset", "parquet"])
def test_any_batch_size_makes_the_same_files(teacher: Path, tmp_path: Path, form: str) -> None:
    pytest.importorskip("pyarrow")
    made(teacher, tmp_path / "one", format=form, batch_size=1, shard_size=64)
    made(teacher, tmp_path / "two", format=form, batch_size=1000, shard_size=64)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert not (tmp_path / "one" / "parts").exists()


def test_image_i_depends_on_seed_and_i_alone(teacher: Path, tmp_path: Path) -> None:
    for name, changes in {"few": {"per_class": 5}, "many": {}, "other": {"seed": 1}}.items():
        made(teacher, tmp_path / name, **changes)
    few, many, other = (read_stored(tmp_path / name) for name in ("few", "many", "other"))
    assert torch.equal(few.images, many.images[:50])
    assert torch.equal(few.logits, many.logits[:50])
    assert not torch.equal(many.images, other.images)


def test_what_is_read_back_is_what_the_teacher_says_of_it(teacher: Path, tmp_path: Path) -> None:
    made(teacher, tmp_path / "run")
    stored = read_stored(tmp_path / "run")
    model = load(teacher)
    assert stored.spec == model.spec == ImageSpec(1, 8, 8, 10)
    assert stored.labels.bincount().tolist() == [20] * 10
    assert stored.mean == pytest.approx(tuple(model.normalize.mean.flatten().tolist()))
    with torch.no_grad():
        assert torch.allclose(model(stored.images / 255.0), stored.logits, atol=1e-4)
    assert stored.about["teacher"]["sha256"] == json.loads((teacher / "teacher" / "config.json").read_text())["sha256"]


def test_a_killed_run_goes_on_to_the_same_files(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Path(__file__)
    monkeypatch.syspath_prepend(str(here.parent))
    slow = {"kind": "python", "target": f"{here.stem}:Wave", "options": {"slow": 0.05}}
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe(teacher, generator=slow, batch_size=32, per_class=60)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "synthkd", "generate", str(path)]
    killed = subprocess.Popen([*command, f"out={tmp_path / 'killed'}"], env=environment, stderr=subprocess.DEVNULL)
    store = PartStore(tmp_path / "killed" / "parts")
    began = time.monotonic()
    while len(store.spans()) < 4:
        assert killed.poll() is None, "it ended before it could be killed"
        assert time.monotonic() - began < 60
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "dataset").exists()
    resumed = made(teacher, tmp_path / "killed", generator=slow, batch_size=32, per_class=60)
    made(teacher, tmp_path / "whole", generator=slow, batch_size=32, per_class=60)
    assert resumed.values["cost"]["images_made_now"] < 600
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_a_dry_run_samples_whole_chunks_of_a_generator_of_the_user(teacher: Path) -> None:
    plan = generate(load_config(GenerateConfig, recipe(teacher), []), dry_run=True)
    assert isinstance(plan, Plan)
    assert "200 images at" in str(plan)
    assert plan.lines[-1].startswith("  memory: about ")


class Half:
    """The accelerator of one of two processes that run one after the other."""

    num_processes = 2

    def __init__(self, rank: int) -> None:
        self.process_index, self.is_main_process = rank, rank == 0

    def wait_for_everyone(self) -> None:
        """There is nobody to wait for."""


def test_two_processes_share_the_chunks(teacher: Path, tmp_path: Path) -> None:
    from accelerate import Accelerator

    from synthkd.data.written.filters import Sieve
    from synthkd.distillation.teachers import FrozenTeacher

    frozen = FrozenTeacher(load(teacher), Accelerator(cpu=True))
    how = sampling.ChunkSampler(Wave(frozen.model, 0), frozen, 0.3, 0)

    def share(folder: str, rank: int) -> sampling.Sampling:
        store = PartStore(tmp_path / folder)
        names = [str(label) for label in range(10)]
        return sampling.Sampling(how, store, Sieve([20] * 10), names, 64, Half(rank))  # type: ignore[arg-type]

    with pytest.raises(CheckpointError, match="lacks images 64 to 200"):
        share("two", 0).run("first")
    assert PartStore(tmp_path / "two").spans() == [(0, 64), (128, 192)]
    second = share("two", 1)
    second.run("second")
    assert second.made == 200 - 128
    made(teacher, tmp_path / "one")
    whole = read_stored(tmp_path / "one")
    assert torch.equal(torch.cat([block.images for block in second.records()]), whole.images)


@pytest.mark.slow
def test_torchrun_makes_the_files_of_one_process(tmp_path: Path) -> None:
    taught = {
        "kind": "train",
        "data": {"kind": "digits"},
        "model": {"arch": "convnet", "width": 8},
        "training": {"steps": 40, "batch_size": 64},
    }
    changes = {"teacher": taught, "generator": {"width": 8, "latent": 32}, "rounds": 4, "batch_size": 32}
    path, small = tmp_path / "recipe.yaml", tmp_path / "small"
    path.write_text(json.dumps(recipe(Path(), **changes)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def run(launcher: list[str], *words: str) -> subprocess.CompletedProcess[str]:
        command = [*launcher, "synthkd", "generate", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)

    one = [sys.executable, "-m"]
    two = [*one, "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    assert "error: rounds: several processes sample" in run(two, str(path), f"out={small}").stderr
    assert run(one, str(path), f"out={small}", "per_class=1").returncode == 0
    for name, launcher in {"one": one, "two": two}.items():
        done = run(launcher, f"run={small}", "per_class=20", "batch_size=32", f"out={tmp_path / name}")
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("report:") == 1, "one process speaks"
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_unbalanced_counts_by_name_and_number(teacher: Path, tmp_path: Path) -> None:
    made(teacher, tmp_path / "run", per_class={"3": 7, "0": 40}, format="webdataset")
    assert read_stored(tmp_path / "run").labels.bincount(minlength=10).tolist() == [40, 0, 0, 7, 0, 0, 0, 0, 0, 0]


def test_class_counts() -> None:
    assert class_counts(3, NAMES) == [3, 3, 3, 3]
    assert class_counts({"two": 5, "0": 1}, NAMES) == [1, 0, 5, 0]
    assert class_counts({"1": 2}, ("7", "1", "0")) == [0, 2, 0], "a name goes before a number"
    with pytest.raises(ConfigError, match="no class 'thre'; did you mean 'three'"):
        class_counts({"thre": 1}, NAMES)
    with pytest.raises(ConfigError, match="no class '4'; there are zero, one, two, three, or 0 to 3"):
        class_counts({"4": 1}, NAMES)
    with pytest.raises(ConfigError, match="'one' is there twice"):
        class_counts({"one": 1, "1": 1}, NAMES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"per_class": {"3": 5}}, "class '0' gets no image"),
        ({"per_class": {"ten": 5}}, "per_class: no class 'ten'"),
        ({"per_class": 0}, "per_class"),
        ({"per_class": {"1": 0}}, "asks for no image"),
        ({"generator": {"kind": "inversion"}}, "rounds: 0 would leave the inversion generator untrained"),
        ({"generator": {"kind": "pixels"}, "rounds": 3}, "nothing about the pixels generator is trained"),
        ({"generator": {"kind": "cgan"}, "rounds": 3}, "learns from real images: set data"),
        ({"data": {"kind": "digits"}}, "neither the python generator nor a filter uses real images"),
        ({"filters": {"copies": 0.1}}, "filters.copies compares with real images: set data"),
        ({"teacher": None}, "nothing to label the images"),
        ({"run": "somewhere", "rounds": 5}, "leave rounds out"),
    ],
)
def test_a_wrong_recipe_is_refused_in_a_line(
    teacher: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        made(teacher, tmp_path / "run", **changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_saved_generator_that_knows_no_class_is_refused_too(teacher: Path, tmp_path: Path) -> None:
    settings, model = ContinuousSettings(kind="continuous", one_hot=1.0, width=4, latent=4), load(teacher / "teacher")
    save_generator(Continuous(settings, model), settings, tmp_path / "g", model.spec, (), 0, 0)
    with pytest.raises(ConfigError, match="kind: continuous images are made for no class"):
        made(teacher, tmp_path / "run", generator={"kind": "saved", "path": str(tmp_path / "g")})


@pytest.mark.parametrize("saved", [False, True])
def test_the_images_of_a_private_generator_are_not_compared_with_its_training(
    teacher: Path, tmp_path: Path, saved: bool
) -> None:
    settings, model = MerfSettings(kind="merf", epsilon=1.0, delta=1e-5), load(teacher / "teacher")
    generator = settings.model_dump()
    if saved:  # the weights of another generator do, since only the settings are read
        other = Continuous(ContinuousSettings(kind="continuous", one_hot=1.0, width=4, latent=4), model)
        save_generator(other, settings, tmp_path / "g", model.spec, (), 0, 0)
        generator = {"kind": "saved", "path": str(tmp_path / "g")}
    changes = {"generator": generator, "rounds": 0 if saved else 1, "data": {"kind": "digits"}}
    with pytest.raises(ConfigError, match="compares with every private image without noise"):
        made(teacher, tmp_path / "run", **changes, filters={"copies": 0.1})


def test_repeated_images_are_told(teacher: Path, tmp_path: Path) -> None:
    few = {"generator": {"kind": "pixel_inversion", "batch_size": 20, "steps": 1}, "rounds": 1}
    lines = made(teacher, tmp_path / "a", per_class=2, **few).summary
    assert not any("repeat an earlier one" in line for line in lines)
    lines = made(teacher, tmp_path / "b", per_class=4, **few).summary
    assert any("20 of them repeat an earlier one exactly: ask for fewer of a class" in line for line in lines)


def test_filters_leave_out_and_fill_up(teacher: Path, tmp_path: Path) -> None:
    plain = made(teacher, tmp_path / "plain").values["dataset"]["scores"]
    found = read_stored(tmp_path / "plain")
    shares = found.logits.softmax(1)[torch.arange(200), found.labels]
    limit = min(float(shares[found.labels == label].median()) for label in range(10))
    changes = {"filters": {"confidence": limit, "near_duplicates": 0.0}}
    values = made(teacher, tmp_path / "sure", batch_size=32, **changes).values["dataset"]
    assert values["counts"] == [20] * 10
    assert values["scores"]["tried"] > plain["tried"]
    assert values["scores"]["rejected"]["confidence"] == values["scores"]["tried"] - 200
    stored = read_stored(tmp_path / "sure")
    assert bool((stored.logits.double().softmax(1)[torch.arange(200), stored.labels] >= limit).all())
    assert "were left out, which raises both" in (tmp_path / "sure" / "dataset" / "README.md").read_text()
    made(teacher, tmp_path / "again", batch_size=256, **changes)
    assert files(tmp_path / "sure") == files(tmp_path / "again")


def test_a_class_that_cannot_be_filled_is_named_with_its_rate(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"class '\d': 0 of \d+ images passed the filters \(0.0%\), 2 are wanted"):
        made(teacher, tmp_path / "run", per_class=2, filters={"confidence": 1.0})


def test_copies_of_real_images_are_left_out(teacher: Path, tmp_path: Path) -> None:
    changes = {"data": {"kind": "digits"}, "filters": {"copies": 0.01}}
    about = made(teacher, tmp_path / "run", **changes).values["dataset"]
    assert about["real_images_compared"] > 1000
    assert "No image here lies within 0.01" in (tmp_path / "run" / "dataset" / "README.md").read_text()


def test_a_full_disk_ends_in_a_line_and_the_same_command_resumes(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = part_files.write_atomically
    room = iter(range(2))

    def write(path: Path, data: bytes) -> None:
        if next(room, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        whole(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(part_files, "write_atomically", write)
        with pytest.raises(CheckpointError, match=r"the disk is full .*; free some space, then the same"):
            made(teacher, tmp_path / "run", batch_size=32)
    assert len(PartStore(tmp_path / "run" / "parts").spans()) == 2
    assert made(teacher, tmp_path / "run", batch_size=25).values["cost"]["images_made_now"] == 200 - 64, "it is free"
    made(teacher, tmp_path / "whole")
    assert files(tmp_path / "run") == files(tmp_path / "whole")


def test_too_small_a_disk_is_refused_before_anything_is_made(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda _: 1000)
    with pytest.raises(CheckpointError, match=r"needs about [\d.]+ MB of disk, but 0.0 MB are free"):
        made(teacher, tmp_path / "run")
    assert not (tmp_path / "run" / "parts").exists()


def test_a_recipe_trains_and_its_run_is_sampled_again(teacher: Path, tmp_path: Path) -> None:
    first = made(teacher, tmp_path / "first", generator={"width": 8, "latent": 32}, rounds=3, per_class=4)
    assert first.values["dataset"]["real_images_used"] == 0
    config = load_config(
        GenerateConfig, {"run": str(tmp_path / "first"), "per_class": 4}, [f"out={tmp_path / 'again'}"]
    )
    generate(config)
    once, again = read_stored(tmp_path / "first"), read_stored(tmp_path / "again")
    assert torch.equal(once.images, again.images)
    assert torch.equal(once.logits, again.logits)
    assert once.about["generator"] == again.about["generator"]
    with pytest.raises((ConfigError, ModelError), match="nowhere"):
        generate(load_config(GenerateConfig, {"run": "nowhere", "per_class": 4}, []), dry_run=True)


def test_training_that_was_cut_off_goes_on_to_the_same_files(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"generator": {"width": 8, "latent": 32}, "rounds": 4, "per_class": 4, "checkpoint_every": 1}
    whole = Inversion.round
    rounds: list[int] = []

    def cut_off(self: Inversion, index: int, *rest: object) -> Round:
        rounds.append(index)
        if len(rounds) == 3:
            raise KeyboardInterrupt
        return whole(self, index, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Inversion, "round", cut_off)
    with pytest.raises(KeyboardInterrupt):
        made(teacher, tmp_path / "run", **changes)
    made(teacher, tmp_path / "run", **changes)
    assert rounds == [0, 1, 2, 2, 3]
    made(teacher, tmp_path / "whole", **changes)
    assert files(tmp_path / "run") == files(tmp_path / "whole")


def test_dry_run_plans_and_writes_nothing(teacher: Path, tmp_path: Path) -> None:
    config = load_config(GenerateConfig, recipe(teacher), [f"out={tmp_path / 'run'}"])
    plan = generate(config, dry_run=True)
    assert isinstance(plan, Plan)
    assert "200, 20 of each class, as folder" in str(plan)
    assert "MB of dataset" in str(plan)
    assert not (tmp_path / "run").exists()


def test_the_disk_of_the_generators_checkpoints_is_in_the_plan(teacher: Path) -> None:
    """A recipe that trains a wider generator asks for more room beside the dataset."""

    def beside(width: int) -> float:
        changes = {"generator": {"kind": "inversion", "width": width}, "rounds": 1}
        plan = generate(load_config(GenerateConfig, recipe(teacher, **changes), []), dry_run=True)
        found = re.search(r"and ([\d.]+) MB beside it", str(plan))
        assert found is not None, plan
        return float(found[1])

    assert beside(64) > 2 * beside(16)


@pytest.fixture
def card(teacher: Path, tmp_path: Path) -> str:
    made(teacher, tmp_path / "run")
    return (tmp_path / "run" / "dataset" / "README.md").read_text()


def test_a_dataset_names_no_folder_of_this_machine(card: str, tmp_path: Path) -> None:
    assert "  model: run\n" in card, "the teacher's file without its folder"
    for path in (tmp_path / "run" / "dataset").iterdir():
        if path.is_file():
            assert str(tmp_path.parent) not in path.read_text()


def test_the_card_says_what_it_is(card: str, tmp_path: Path) -> None:
    front = yaml.safe_load(card.split("---")[1])
    assert front["synthetic"] is True
    assert front["size_categories"] == ["n<1K"]
    about = unsealed((tmp_path / "run" / "dataset" / "dataset.json").read_bytes())
    assert about["teacher"]["sha256"] in card
    assert "Seed 0." in card
    assert "There is no privacy guarantee" in card
    assert "is not known here" in card, "a python generator may have learned from anything"
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["dataset"] == about
    assert "200 synthetic images" in (tmp_path / "run" / "report.html").read_text()


def test_a_disk_that_runs_full_is_known_whoever_met_it_and_whatever_they_made_of_it() -> None:
    said_by_torch = RuntimeError("unexpected pos 64 vs 0")
    said_by_torch.__context__ = OSError(errno.ENOSPC, "No space left on device", "x")
    with pytest.raises(CheckpointError, match=r"the disk is full \(x\)"), disk.full_disk():
        raise said_by_torch
    with pytest.raises(CheckpointError, match="the disk is full"), disk.full_disk():
        raise SafetensorError("I/O error: No space left on device (os error 28)")
    with pytest.raises(CheckpointError, match="larger than allowed here"), disk.full_disk():
        raise DataError("the download failed") from OSError(errno.EFBIG, "File too large")
    with pytest.raises(RuntimeError, match="another"), disk.full_disk():
        raise RuntimeError("another")
    with pytest.raises(FileNotFoundError), disk.full_disk():
        raise FileNotFoundError


def test_a_finished_run_is_left_alone(teacher: Path, tmp_path: Path) -> None:
    made(teacher, tmp_path / "run")
    before = files(tmp_path / "run")
    assert "complete already" in str(made(teacher, tmp_path / "run"))
    assert files(tmp_path / "run") == before
