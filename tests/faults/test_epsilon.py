"""Epsilon is what happened: whatever is killed, damaged, changed or started twice, the ledger has every query."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from synthkd.errors import CheckpointError
from synthkd.generators import merf
from synthkd.models import build, save
from synthkd.pipelines.cli import INTERRUPTED, main
from synthkd.pipelines.handover import flow
from synthkd.privacy.claims import ledger_of
from synthkd.privacy.dpsgd import PoissonSource
from synthkd.privacy.journal import JOURNAL, PRIVATE, Journal
from synthkd.privacy.ledger import Ledger, PoissonSteps, Release
from synthkd.settings import ZooModel
from synthkd.system.sealed import sealed, unsealed
from synthkd.types import ImageSpec

pytest.importorskip("opacus")
pytest.importorskip("dp_accounting")

STEPS = 6
SMALL = {"device": "cpu", "threads": 1}
DP = {"noise_multiplier": 1.0, "delta": 1e-3}
PIXELS = {"kind": "pixels", "batch_size": 8, "steps": 2}
MERF = {"kind": "merf", "epsilon": 4.0, "delta": 1e-3, "features": 64, "width": 8, "batch_size": 20, "steps": 2}
PHASES = [{"kind": "pregenerate", "rounds": 2}, {"kind": "refine", "steps": 2}]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """200 images of 4 classes."""
    return written(tmp_path / "images.npz", seed=0)


def written(path: Path, seed: int, count: int = 200) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
    np.savez(path, images=pixels, labels=np.arange(count) % 4)
    return path


def data(images: Path) -> dict[str, Any]:
    return {"kind": "npz", "path": str(images)}


def teacher(images: Path, **training: Any) -> dict[str, Any]:
    """What teaches privately, at the top of a recipe or in one."""
    return {
        "data": data(images),
        "model": {"arch": "mlp", "width": 8, "depth": 1},
        "training": {"steps": STEPS, "batch_size": 32, "dp": DP, **training},
    }


def distilled(images: Path, generator: dict[str, Any] = PIXELS, **changes: Any) -> dict[str, Any]:
    return {
        **SMALL,
        "teacher": {"kind": "train", **teacher(images)},
        "student": {"arch": "mlp", "width": 4, "depth": 1},
        "transfer_set": {"generator": generator},
        "phases": PHASES,
        "distill": {"batch_size": 8},
        **changes,
    }


def compressed(images: Path, generator: dict[str, Any] = PIXELS, **changes: Any) -> dict[str, Any]:
    kept = {"flow": "dp_teacher", "export": {"formats": []}}
    noisy = {"synthetic": {"rounds": 2, "per_class": 8}} if generator is MERF else {}
    recipe = distilled(images, generator, **{**kept, **noisy, **changes})
    distillation = {key: recipe.pop(key) for key in ("transfer_set", "phases", "distill")}
    return {**recipe, "distillation": distillation}


def run(job: str, recipe: dict[str, Any], out: Path, *settings: str) -> int:
    path = out.parent / f"{out.name}.yaml"
    path.write_text(json.dumps(recipe))
    return main([job, str(path), f"out={out}", *settings])


def refused(capsys: pytest.CaptureFixture[str], code: int, expected: int, *said: str) -> None:
    """One line of error, of that kind, which says these things."""
    told = capsys.readouterr().err.splitlines()
    errors = [line for line in told if line.startswith("error: ")]
    assert code == expected, told
    assert len(errors) == 1, told
    assert all(word in errors[0] for word in said), errors
    assert "Traceback" not in "".join(told)


class Witness:
    """Counts the batches that were drawn of private images, and cuts the run at the next after `last`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches, self.last = 0, 10**6
        draw = PoissonSource.batch

        def batch(source: PoissonSource, step: int) -> Any:
            drawn = draw(source, step)
            self.batches += 1
            if self.batches > self.last:
                raise KeyboardInterrupt
            return drawn

        monkeypatch.setattr(PoissonSource, "batch", batch)


@pytest.fixture
def witness(monkeypatch: pytest.MonkeyPatch) -> Witness:
    return Witness(monkeypatch)


@pytest.fixture
def releases(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images of each noisy release."""
    counts: list[int] = []
    release = merf.release

    def counted(pixels: Any, *rest: Any) -> Any:
        counts.append(len(pixels))
        return release(pixels, *rest)

    monkeypatch.setattr(merf, "release", counted)
    return counts


def teach(images: Path, out: Path, **training: Any) -> int:
    return run("teach", {**SMALL, **teacher(images, **training), "checkpoint_every": 2}, out)


def claimed(out: Path) -> Ledger:
    return ledger_of(json.loads((out / "result.json").read_text())["dp"])


def test_a_run_that_is_cut_again_and_again_charges_each_step_that_it_took(
    images: Path, tmp_path: Path, witness: Witness
) -> None:
    out = tmp_path / "run"
    for witness.last in (0, 3, 6):
        assert teach(images, out) == INTERRUPTED
        assert Journal(out).steps == witness.batches
    with (out / JOURNAL).open("ab") as file:
        file.write(b'{"event": "poisson_st')  # a line that a kill tore
    witness.last = 10**6
    assert teach(images, out) == 0
    assert witness.batches > STEPS
    assert claimed(out) == Journal(out).ledger
    assert sum(event.steps for event in claimed(out).events if isinstance(event, PoissonSteps)) == witness.batches + 1


def test_damaged_checkpoints_are_to_be_restored_and_not_to_be_deleted(
    images: Path, tmp_path: Path, witness: Witness, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    witness.last = 4
    assert teach(images, out) == INTERRUPTED
    for state in (out / "checkpoints").glob("*/state.pt"):
        state.write_bytes(b"")
    capsys.readouterr()
    code = teach(images, out)
    refused(capsys, code, CheckpointError.exit_code, "no checkpoint verifies", "restore it from a copy", "twice")


def flipped(text: bytes, place: int) -> bytes:
    """One digit or letter changed."""
    other = b"0" if text[place : place + 1] != b"0" else b"1"
    return text[:place] + other + text[place + 1 :]


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda _: b"",
    "halved": lambda text: text[: len(text) // 2],
    "without its last line": lambda text: b"".join(text.splitlines(keepends=True)[:-1]),
    "without its first line": lambda text: b"".join(text.splitlines(keepends=True)[1:]),
    "a step less": lambda text: text.replace(b'"steps": 1', b'"steps": 0', 1),
    "of the old form": lambda text: b'{"steps": 1}\n' * len(text.splitlines()),
    "negative": lambda text: text + b'{"steps": -3}\n',
    "huge": lambda text: text + b'{"steps": 1' + b"0" * 5000 + b"}\n",
    "not finite": lambda text: text.replace(b'"steps": 1', b'"steps": NaN', 1),
    "deep": lambda text: text + b"[" * 100_000 + b"\n",
    "a list": lambda text: text + b"[1, 2]\n",
    "bytes": lambda text: text + b"\xff\x00\n",
    "of another run": lambda text: text,
}


def test_a_journal_that_does_not_prove_its_steps_is_an_error_and_never_a_smaller_epsilon(
    images: Path, tmp_path: Path, witness: Witness, capsys: pytest.CaptureFixture[str]
) -> None:
    out, other = tmp_path / "run", tmp_path / "other"
    witness.last = 4
    assert teach(images, out) == INTERRUPTED
    witness.batches = 0
    assert teach(images, other, batch_size=33) == INTERRUPTED
    good = {name: (out / name).read_bytes() for name in (JOURNAL, PRIVATE)}
    assert good[JOURNAL].count(b"\n") == 5
    capsys.readouterr()
    witness.batches = 0

    def still_refused(**files: bytes | None) -> None:
        for name, text in {**good, **files}.items():
            (out / name).unlink(missing_ok=True)
            if text is not None:
                (out / name).write_bytes(text)
        before = set(out.rglob("*"))
        refused(capsys, teach(images, out), CheckpointError.exit_code, "does not prove", "restore", "another out=")
        assert set(out.rglob("*")) >= before, "nothing is lost"

    still_refused(**{JOURNAL: None})
    for name, damage in DAMAGED.items():
        text = (other / JOURNAL).read_bytes() if name == "of another run" else damage(good[JOURNAL])
        still_refused(**{JOURNAL: text})
    still_refused(**{JOURNAL: None, PRIVATE: None})
    (out / "checkpoints").rename(tmp_path / "aside")
    still_refused(**{JOURNAL: None, PRIVATE: None})  # the log knows that the run has begun
    (tmp_path / "aside").rename(out / "checkpoints")
    for private in (
        None,
        b"",
        b"[" * 10_000,
        b'{"looks": -1}',
        good[PRIVATE].replace(b'"looks": 5', b'"looks": 6'),
    ):
        still_refused(**{PRIVATE: private})
    assert witness.batches == 0

    (out / PRIVATE).write_bytes(good[PRIVATE])
    lines = good[JOURNAL]
    for text in (*(lines[:end] for end in range(len(lines))), *(flipped(lines, place) for place in range(len(lines)))):
        (out / JOURNAL).write_bytes(text)
        with pytest.raises(CheckpointError, match="does not prove"):
            Journal(out)
    (out / JOURNAL).write_bytes(lines)
    assert Journal(out).steps == 5


@pytest.mark.parametrize(
    "event",
    [b"nonsense", b"\xff\xfe", b"[" * 100_000, b'{"steps": ' + b"9" * 5000, b'{"event": "poisson_steps"',
     b'{"event": "poisson_steps", "sample_rate": 1e-300, "noise_multiplier": 1.0, "steps": 1',
     b'{"event": "poisson_steps", "sample_rate": 0.1, "noise_multiplier": 1e-5, "steps": 1'],
)  # fmt: skip
def test_a_journal_whose_sums_are_right_and_whose_events_are_none_is_refused(tmp_path: Path, event: bytes) -> None:
    digest = hashlib.sha256(hashlib.sha256().hexdigest().encode() + event).hexdigest()
    (tmp_path / JOURNAL).write_bytes(event + b', "sha256": "' + digest.encode() + b'"}\n')
    (tmp_path / PRIVATE).write_text(json.dumps({"format": 1, "looks": 1, "sum": digest}))
    with pytest.raises(CheckpointError) as error:
        Journal(tmp_path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


GAUSS = {"event": "release", "noise_multiplier": 1.0, "adjacency": "replace_one"}
STEP = {"event": "poisson_steps", "sample_rate": 0.1, "noise_multiplier": 1.0, "steps": 5}


@pytest.mark.parametrize(
    "stored",
    [
        [{**STEP, "steps": -5}], [{**STEP, "steps": 10**300}], [{**STEP, "steps": 5.5}], [{**STEP, "steps": True}],
        [{**STEP, "steps": "5"}], [{**STEP, "sample_rate": -0.1}], [{**STEP, "sample_rate": float("nan")}],
        [{**STEP, "sample_rate": False}], [{**STEP, "noise_multiplier": float("inf")}],
        [{**GAUSS, "noise_multiplier": "1"}], [{**GAUSS, "adjacency": ["replace_one"]}], [{**GAUSS, "event": []}],
        [[]], [None], None, 5, "steps", {"event": "release"}, [json.loads("[" * 900 + "]" * 900)],
    ],
)  # fmt: skip
def test_a_ledger_of_absurd_events_is_refused_in_a_line(stored: Any) -> None:
    with pytest.raises(CheckpointError, match="must be the list of events that was saved") as error:
        Ledger.from_json(stored)
    assert len(str(error.value)) < 500


@pytest.fixture
def taught(tmp_path: Path) -> dict[str, Any]:
    """A given teacher of the images."""
    save(build(ZooModel(arch="mlp", width=8, depth=1), ImageSpec(1, 8, 8, 4)), tmp_path / "teacher", {})
    return {"kind": "load", "model": str(tmp_path / "teacher")}


def private_distillation(images: Path, taught: dict[str, Any]) -> dict[str, Any]:
    transfer_set = {"generator": MERF, "data": data(images)}
    return distilled(images, teacher=taught, transfer_set=transfer_set, checkpoint_every=3)


def private_generation(images: Path, taught: dict[str, Any]) -> dict[str, Any]:
    return {**SMALL, "teacher": taught, "generator": MERF, "data": data(images), "rounds": 2, "per_class": 2}


CUT = {
    "teach": "synthkd.pipelines.run.job.Job.finish",
    "distill": "synthkd.distillation.step.DistillStep.__call__",
    "generate": "synthkd.pipelines.dataset.sampling.Sampling.run",
}


OTHERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "others": (lambda path: written(path, seed=1), "with other content"),
    "fewer": (lambda path: written(path, seed=0, count=160), "train: 144 then, 115 now"),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("job", ["teach", "distill", "generate"])
def test_a_run_goes_on_with_its_own_images_only(
    job: str,
    kind: str,
    images: Path,
    tmp_path: Path,
    taught: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    releases: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = {
        "teach": {**SMALL, **teacher(images, dp=None), "checkpoint_every": 2},
        "distill": private_distillation(images, taught),
        "generate": private_generation(images, taught),
    }[job]
    out, kept = tmp_path / "run", images.read_bytes()
    with monkeypatch.context() as patch:  # cut once it has worked
        patch.setattr(CUT[job], interrupt)
        assert run(job, recipe, out) == INTERRUPTED
    before = list(releases)
    change, said = OTHERS[kind]
    change(images)
    capsys.readouterr()
    refused(capsys, run(job, recipe, out), 2, "has worked with other images", said, "choose another out=")
    images.write_bytes(kept)
    assert run(job, recipe, out) == 0
    assert releases == before == ([] if job == "teach" else [144]), "its own images, and no second release"


def digests(run: Path) -> set[str]:
    """Of the labelled images, in the run and in those inside it."""
    kept = [json.loads(path.read_text())["data"] for path in run.rglob(PRIVATE)]
    return {part["content"] for found in kept for part in found.values()}


def test_fewer_images_of_a_class_are_other_images_for_a_run_that_has_made_its_release(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    releases: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = compressed(
        images, flow="dp_generator", generator=MERF, teacher={"kind": "train", **teacher(images, dp=None)}
    )
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(flow, "teach", interrupt)
        assert run("compress", recipe, out) == INTERRUPTED
    capsys.readouterr()
    code = run("compress", recipe, out, "teacher.data.per_class=5")
    refused(capsys, code, 2, "has worked with other images", "train: 144 then, 20 now")
    kept = images.read_bytes()
    written(images, seed=1)
    refused(capsys, run("compress", recipe, out), 2, "has worked with other images", "with other content")
    images.write_bytes(kept)
    assert run("compress", recipe, out, "student.width=3") == 0, "what does not touch the release may be corrected"
    assert releases == [144]


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_before_it_has_worked_a_run_may_change_its_images(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert teach(images, out, batch_size=500) == 2
    capsys.readouterr()
    written(images, seed=0, count=160)
    assert teach(images, out) == 0


def test_a_release_that_is_lost_or_another_is_noticed_and_one_that_a_kill_took_is_charged(
    images: Path,
    tmp_path: Path,
    taught: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    releases: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, recipe = tmp_path / "run", private_generation(images, taught)
    with monkeypatch.context() as patch:
        patch.setattr("synthkd.generators.embedding.Embedding.save", interrupt)
        assert run("generate", recipe, out) == INTERRUPTED, "after the release, before it is on disk"
    assert Journal(out).releases == len(releases) == 1
    with monkeypatch.context() as patch:
        patch.setattr("synthkd.pipelines.dataset.sampling.Sampling.run", interrupt)
        assert run("generate", recipe, out) == INTERRUPTED
    assert Journal(out).releases == len(releases) == 2
    release = out / "generator" / "release.safetensors"
    good = release.read_bytes()
    for text, said in ((None, "is gone"), (flipped(good, len(good) - 1), "another one"), (b"", "another one")):
        release.unlink()
        if text is not None:
            release.write_bytes(text)
        capsys.readouterr()
        refused(capsys, run("generate", recipe, out), 6, str(release), said, "costs its budget a second time")
        release.write_bytes(good)
    for name in (JOURNAL, PRIVATE):
        (out / name).rename(tmp_path / name)
    refused(capsys, run("generate", recipe, out), 6, "does not prove", "gone")
    for name in (JOURNAL, PRIVATE):
        (tmp_path / name).replace(out / name)
    assert run("generate", recipe, out) == 0
    assert Journal(out).releases == len(releases) == 2


@pytest.mark.parametrize("private", ["generator", "teacher"])
def test_an_extension_of_a_finished_run_asks_nothing_of_private_images(
    images: Path, taught: dict[str, Any], tmp_path: Path, releases: list[int], witness: Witness, private: str
) -> None:
    out = tmp_path / "run"
    recipe = private_distillation(images, taught) if private == "generator" else distilled(images)
    assert run("distill", recipe, out) == 0
    journal = out / JOURNAL if private == "generator" else out / "teach" / JOURNAL
    spent = journal.read_bytes(), len(releases), witness.batches
    assert main(["distill", str(out), "more=3"]) == 0
    assert (journal.read_bytes(), len(releases), witness.batches) == spent
    assert (out / "before-1" / "result.json").exists()


def test_a_private_handover_claims_what_its_journals_have_and_shows_no_hash_of_its_images(
    images: Path, tmp_path: Path, releases: list[int], witness: Witness, capsys: pytest.CaptureFixture[str]
) -> None:
    out, recipe = tmp_path / "run", compressed(images, flow="dp_both", generator=MERF)
    assert run("compress", recipe, out) == 0
    claims = json.loads((out / "privacy_report.json").read_text())["dp"]["claims"]
    assert [ledger_of(claim).events[0] for claim in claims] == [
        Release(claims[0]["noise_multiplier"]), PoissonSteps(32 / 144, 1.0, STEPS),
    ]  # fmt: skip
    assert (len(releases), witness.batches) == (1, STEPS)
    assert len(digests(out)) == 3
    for path in (path for path in out.rglob("*") if path.is_file()):
        if path.name == PRIVATE:
            assert path.stat().st_mode & 0o777 == 0o600
        else:
            assert not [digest for digest in digests(out) if digest.encode() in path.read_bytes()], path

    for name in ("result.json", "privacy_report.json", "report.html"):
        (out / name).unlink()  # as if it had been cut before its end
    result = out / "teach" / "result.json"
    good = unsealed(result.read_bytes())
    fewer = {**good["dp"], "ledger": [{**good["dp"]["ledger"][0], "steps": 1}]}
    louder = {**good["dp"], "ledger": [{**good["dp"]["ledger"][0], "noise_multiplier": 9.0}]}
    negative = {**good["dp"], "ledger": [{**good["dp"]["ledger"][0], "steps": -1}]}
    later, surer = {**good["dp"], "delta": 0.3}, {**good["dp"], "insecure": True}
    for claim, said in (
        (fewer, "counts other queries"), (louder, "counts other queries"), (negative, "got -1"), (None, "may claim"),
        (later, "other terms"), (surer, "other terms"),
        ({"ledger": []}, "may claim"), ({**good["dp"], "delta": -1.0}, "may claim"),
    ):  # fmt: skip
        result.write_bytes(sealed({**good, "dp": claim}))
        capsys.readouterr()
        refused(capsys, run("compress", recipe, out), 6, said, "from a copy")
    result.write_bytes(sealed(good))
    for name in (JOURNAL, PRIVATE):
        (out / "teach" / name).rename(tmp_path / name)
    refused(capsys, run("compress", recipe, out), 6, "teach", "gone", "from a copy")
    for name in (JOURNAL, PRIVATE):
        (tmp_path / name).rename(out / "teach" / name)
    for part in ("release", "teach"):  # what is not there any more was released all the same
        (out / part).rename(tmp_path / part)
        refused(capsys, run("compress", recipe, out), 6, f"{part}/privacy.jsonl is gone", "from a copy")
        (tmp_path / part).rename(out / part)
    plain = compressed(images, flow="dp_teacher")
    refused(capsys, run("compress", plain, out), 6, "release has used", "flow dp_teacher would not count")
    assert (len(releases), witness.batches) == (1, STEPS)


BATCHNORM = {"arch": "convnet", "width": 4}
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "batchnorm": ({"model": BATCHNORM}, {}, "is a BatchNorm"),
    "delta": ({}, {"dp": {**DP, "delta": 0.1}}, "below 1 / 144"),
    "batch": ({}, {"batch_size": 200}, "200 expected images of 144"),
    "clip": ({}, {"optimizer": {"clip": 1.0}}, "set training.dp.clip"),
    "steps": ({}, {"steps": 10**9, "dp": {"epsilon": 8.0, "delta": 1e-3}}, "whole number from 0 to"),
    "precision": ({}, {}, "set precision=no"),
    "processes": ({}, {}, "leave torchrun out"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_private_training_refuses_the_dry_run_of_every_job_refuses(
    why: str,
    images: Path,
    tmp_path: Path,
    witness: Witness,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, training, said = REFUSED[why]
    asked = {**teacher(images, **training), **model}
    inside = {"teacher": {"kind": "train", **asked}}
    recipes = {"teach": {**SMALL, **asked}, "distill": distilled(images, **inside)}
    recipes["compress"] = compressed(images, **inside)
    recipes["generate"] = {**SMALL, **inside, "generator": {"kind": "pixels"}, "per_class": 2}
    if why == "processes":
        target = import_module("synthkd.pipelines.teacher.learning")
        monkeypatch.setattr(target, "process_state", lambda _: SimpleNamespace(num_processes=2))
        del recipes["compress"]  # whose main process trains alone
    settings = ["precision=bf16"] if why == "precision" else []
    for job, recipe in recipes.items():
        for dry in (["--dry-run"], []):
            capsys.readouterr()
            refused(capsys, run(job, recipe, tmp_path / job, *settings, *dry), 2, said)
        if why in ("precision", "processes") and job in ("teach", "compress"):
            assert not (tmp_path / job).exists() or not any((tmp_path / job).rglob(JOURNAL))
    assert witness.batches == 0


OWN = """
from torch import nn

class Net(nn.Sequential):
    def forward(self, x):
        h = self[1](self[0](x))
        return self[2](h.relu_() if self.training else h.relu())

def net():
    return Net(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 4))
"""


def test_a_network_that_fails_in_private_steps_alone_costs_no_step(
    images: Path,
    tmp_path: Path,
    witness: Witness,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "own_net_in_place.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = {**SMALL, **teacher(images), "model": {"kind": "load", "model": "own_net_in_place:net"}, "trust": True}
    for dry in (["--dry-run"], []):
        refused(capsys, run("teach", recipe, tmp_path / "run", *dry), 2, "on noise fails", "operations are in place")
    assert not any((tmp_path / "run").rglob(JOURNAL))
    assert witness.batches == 0


@pytest.mark.parametrize("flow_", ["dp_teacher", "dp_generator"])
def test_a_missing_accountant_is_told_by_the_dry_run(
    flow_: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    noisy = (
        {"generator": MERF, "teacher": {"kind": "train", **teacher(images, dp=None)}} if flow_ == "dp_generator" else {}
    )
    recipe = compressed(images, flow=flow_, **noisy)
    refused(capsys, run("compress", recipe, tmp_path / "run", "--dry-run"), 7, "pip install 'synthkd[dp]'")


def test_a_dry_run_of_what_may_be_trained_privately_touches_nothing(
    images: Path, tmp_path: Path, witness: Witness, releases: list[int]
) -> None:
    assert run("compress", compressed(images, flow="dp_both", generator=MERF), tmp_path / "run", "--dry-run") == 0
    assert run("teach", {**SMALL, **teacher(images)}, tmp_path / "run", "--dry-run") == 0
    assert not (tmp_path / "run").exists()
    assert not releases
    assert witness.batches == 0


WITNESSED = """
import os, sys
from synthkd.generators import merf
from synthkd.pipelines.cli import main
release = merf.release
def counted(*args):
    with open("releases", "a") as file:
        file.write(f"{os.getpid()}\\n")
    return release(*args)
merf.release = counted
codes = [main(words.split()) for words in sys.argv[1:]]
if os.environ.get("RANK", "0") == "0":
    print("codes", codes)
"""


def test_two_processes_release_as_often_as_one(
    images: Path, tmp_path: Path, taught: dict[str, Any], releases: list[int]
) -> None:
    recipe = private_distillation(images, taught)
    assert run("distill", recipe, tmp_path / "one") == 0
    assert len(releases) == Journal(tmp_path / "one").releases == 1

    flows = compressed(
        images, flow="dp_generator", generator=MERF, teacher={"kind": "train", **teacher(images, dp=None)}
    )
    for name, values in (("distill", recipe), ("compress", flows), ("teach", {**SMALL, **teacher(images)})):
        (tmp_path / f"{name}.yaml").write_text(json.dumps(values))
    (tmp_path / "witnessed.py").write_text(WITNESSED)
    commands = [
        ["compress", "compress.yaml", "out=both", "--dry-run"],
        ["teach", "teach.yaml", "out=refused"],
        ["distill", "distill.yaml", "out=two"],
    ]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "witnessed.py", *map(" ".join, commands)],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "codes [0, 2, 0]" in done.stdout, done.stderr[-3000:]
    assert done.stderr.count("leave torchrun out") == 1
    assert not (tmp_path / "refused").exists()
    assert not (tmp_path / "both").exists()
    lines = (tmp_path / "releases").read_text().splitlines()
    assert len(lines) == Journal(tmp_path / "two").releases == 1
