"""What an audit needs is checked, and its canaries are drawn, before anything is trained."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from synthkd.data.read.splits import RealData, Splits
from synthkd.errors import ConfigError
from synthkd.pipelines import compress
from synthkd.pipelines.config import CompressConfig
from synthkd.pipelines.handover import attack
from synthkd.privacy.canaries import Canaries, choose
from synthkd.rng import derive
from synthkd.settings.load import load_config
from synthkd.types import ImageSpec

SPEC = ImageSpec(1, 8, 8, 4)
NAMES = ("a", "b", "c", "d")
DP = {"flow": "dp_teacher", "teacher.training.dp.noise_multiplier": "1.0", "teacher.training.dp.delta": "1e-3"}


def config(path: str = "images.npz", **changes: str) -> CompressConfig:
    recipe: dict[str, Any] = {
        "device": "cpu",
        "threads": 1,
        "teacher": {
            "kind": "train",
            "data": {"kind": "npz", "path": path, "test": 0.0, "holdout": 0.0},
            "model": {"arch": "mlp", "width": 4, "depth": 1},
            "training": {"steps": 2, "batch_size": 8},
        },
        "student": {"arch": "mlp", "width": 4, "depth": 1},
        "distillation": {
            "transfer_set": {"generator": {"kind": "pixels", "batch_size": 8}},
            "phases": [{"kind": "pregenerate", "rounds": 1}, {"kind": "refine", "steps": 1}],
        },
        "audit": {"canaries": 80, "references": 1},
        "export": {"formats": []},
    }
    return load_config(CompressConfig, recipe, [f"{key}={value}" for key, value in changes.items()])


def pixels(count: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, *SPEC.shape), generator=rng, dtype=torch.uint8)


def splits(train: Tensor, test: Tensor | None = None) -> Splits:
    def part(images: Tensor) -> RealData:
        return RealData(images, torch.arange(len(images)) % SPEC.classes, SPEC, NAMES, "images")

    return Splits(part(train), part(train[:0]), part(train[:0] if test is None else test))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"audit.canaries": "101"}, "101 are more than half of the 200 private images"),
        ({"audit.guesses": "7"}, "audit.guesses: expected an even number from 2 to 40, half of the canaries, got 7"),
        ({"audit.guesses": "42"}, "got 42; take about 8, or leave it out"),
        ({**DP, "teacher.training.batch_size": "121"}, "teacher.training.batch_size: 121 expected images of 120,"),
    ],
)
def test_what_an_audit_lacks_ends_a_dry_run_and_a_run_at_once(
    tmp_path: Path, changes: dict[str, str], said: str
) -> None:
    np.savez(tmp_path / "images.npz", images=pixels(200).numpy(), labels=np.arange(200) % SPEC.classes)
    asked = config(str(tmp_path / "images.npz"), out=str(tmp_path / "run"), **changes)
    for dry_run in (True, False):
        with pytest.raises(ConfigError, match=said):
            compress(asked, dry_run=dry_run)
    assert not (tmp_path / "run" / "teach").exists()


@pytest.mark.parametrize(
    ("images", "said"), [(600, "; take 80$"), (2000, "; take 200$"), (159, "; an audit needs 160: leave audit out$")]
)
def test_the_remedy_for_too_many_canaries_is_itself_taken(images: int, said: str) -> None:
    private = splits(pixels(images))
    with pytest.raises(ConfigError, match=said):
        attack.require_enough(config(**{"audit.canaries": str(images)}), private)
    if "take" in said:
        attack.require_enough(config(**{"audit.canaries": said.strip("; take$")}), private)


@pytest.mark.parametrize(
    "changes", [{"audit.canaries": "100", "audit.guesses": "50"}, {**DP, "teacher.training.batch_size": "120"}]
)
def test_what_is_just_enough_is_taken(changes: dict[str, str]) -> None:
    attack.require_enough(config(**changes), splits(pixels(200)))


def test_a_plain_teacher_may_have_larger_batches_than_its_references_have_images() -> None:
    attack.require_enough(config(**{"teacher.training.batch_size": "150"}), splits(pixels(200)))


def test_without_copies_any_image_may_be_a_canary() -> None:
    private = splits(pixels(200))
    expected = choose(private.train.labels, SPEC.classes, 80, derive(0, "audit"))
    drawn = attack.draw_canaries(config(), private)
    for name, value in vars(expected).items():
        assert torch.equal(getattr(drawn.canaries, name), value)
    assert [(check.name, check.passed) for check in drawn.checks] == [
        ("no image in two roles", True),
        ("blind baseline", True),
    ]


def test_an_image_with_a_copy_is_no_canary(monkeypatch: pytest.MonkeyPatch) -> None:
    train = pixels(200)
    train[100:150] = train[:50]
    seen_before = train[50:60].repeat(2, 1, 1, 1)
    monkeypatch.setattr(attack, "POPULATION", 20)
    for test, first in ((None, 50), (pixels(20, 1), 50), (seen_before, 60)):
        drawn = attack.draw_canaries(config(), splits(train, test))
        rows = set(drawn.canaries.rows.tolist())
        assert len(rows) == 80
        assert rows <= {*range(first, 100), *range(150, 200)}
    monkeypatch.setattr(attack, "POPULATION", 21)
    rows = set(attack.draw_canaries(config(), splits(train, seen_before)).canaries.rows.tolist())
    assert rows & {*range(50, 60)}, "too few for a population, and so in no role"


def test_too_few_images_without_a_copy_end_a_run_before_it_trains(tmp_path: Path) -> None:
    images = pixels(200)
    images[100:171] = images[:71]
    np.savez(tmp_path / "images.npz", images=images.numpy(), labels=np.arange(200) % SPEC.classes)
    asked = config(str(tmp_path / "images.npz"), out=str(tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"80 are drawn among .* no other image equals, which are 58 of 200; take"):
        compress(asked)
    assert not (tmp_path / "run" / "teach").exists()


@pytest.mark.parametrize(("copies", "said"), [(71, "leave audit out"), (50, "ask for 100 or fewer")])
def test_the_remedy_for_copies_is_itself_taken(copies: int, said: str) -> None:
    images = pixels(200)
    images[200 - copies :] = images[:copies]
    with pytest.raises(ConfigError, match=f"; take out the copies, or {said}"):
        attack.draw_canaries(config(**{"audit.canaries": "120"}), splits(images))


def test_canaries_that_pixels_tell_apart_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    private = splits(pixels(200))

    def by_brightness(labels: Tensor, classes: int, count: int, seed: int) -> Canaries:
        drawn = choose(labels, classes, count, seed)
        means = private.train.images[drawn.rows].float().mean((1, 2, 3))
        return replace(drawn, included=means > means.median())

    monkeypatch.setattr(attack, "choose", by_brightness)
    with pytest.raises(ConfigError, match=r"audit: blind baseline: without any model .*; set another seed, "):
        attack.draw_canaries(config(), private)


def test_a_canary_that_is_left_out_and_equals_an_included_one_is_in_two_roles() -> None:
    train, canaries = splits(pixels(200)).train, choose(torch.arange(200) % 4, 4, 80, 0)
    inside, outside = canaries.rows[canaries.included], canaries.rows[~canaries.included]
    train.images[outside[:3]] = train.images[inside[:1]]
    check = attack._roles_check(attack._sets(train, canaries), None)
    assert not check.passed
    assert check.found == "3 of the canaries that are left out equal a canary pixel by pixel"
