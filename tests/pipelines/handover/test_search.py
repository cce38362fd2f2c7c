"""A search goes on only with scores that were made as its new ones are."""

from typing import Any

import torch

from synthkd.models import Classifier, build
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.handover.search import scored_by
from synthkd.settings import SearchSettings, ZooModel
from synthkd.settings.load import load_config
from synthkd.types import ImageSpec

RECIPE: dict[str, Any] = {"teacher": {"kind": "load", "model": "t"}, "student": {"arch": "mlp"}}


def teacher(seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    return build(ZooModel(arch="mlp", width=4), ImageSpec(1, 8, 8, 3))


def changed(*settings: str, weights: int = 0, **search: int) -> set[str]:
    """What decides the scores and is another with these settings."""

    def values(settings: tuple[str, ...], weights: int, search: dict[str, int]) -> dict[str, str | int]:
        config = load_config(DistillConfig, RECIPE, settings)
        return scored_by(config, SearchSettings(**search), teacher(weights))  # type: ignore[arg-type]

    before, now = values((), 0, {}), values(settings, weights, search)
    assert before.keys() == now.keys()
    return {key for key, value in before.items() if now[key] != value}


def test_what_decides_the_scores_is_told_by_name() -> None:
    assert changed(steps=300) == {"steps"}
    assert changed(rounds=2) == {"rounds"}
    assert changed(weights=1) == {"teacher"}
    assert changed("seed=1") == {"seed of the run"}
    for setting in ("transfer_set.generator.kind=pixels", "distill.temperature=2", "mix.mixup=0.5", "precision=bf16"):
        assert changed(setting) == {"distillation"}


def test_what_decides_no_score_may_be_another() -> None:
    free = ("name=other", "out=elsewhere", "threads=1", "test={kind: digits}", "student={arch: convnet}", "log_every=7")
    assert changed(*free, tolerance=0, candidates=9) == set()


def test_a_generator_that_the_run_saved_may_have_moved_with_it() -> None:
    def distillation(run: str, path: str) -> str | int:
        generator = f"transfer_set=[{{generator: {{kind: saved, path: {path}}}}}, {{kind: procedural, share: 0.1}}]"
        config = load_config(DistillConfig, RECIPE, [generator, f"out={run}/distill"])
        return scored_by(config, SearchSettings(), teacher())["distillation"]

    assert distillation("runs/a", "runs/a/release") == distillation("/moved/b", "/moved/b/release")
    assert distillation("runs/a", "elsewhere/one") != distillation("runs/a", "elsewhere/two")
