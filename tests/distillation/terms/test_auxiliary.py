"""All lessons as one module: full precision whoever trains it, and where the weights of images count."""

from typing import Any

import pytest
import torch
from torch import Tensor

from synthkd.distillation.terms.auxiliary import AuxiliaryLayers
from synthkd.distillation.terms.features import RELATIONS
from synthkd.losses.contrast import crd, sskd
from synthkd.models import build
from synthkd.settings import DistillSettings, ZooModel
from synthkd.settings.load import load_config
from synthkd.types import Batch, ImageSpec

SPEC = ImageSpec(1, 16, 16, 5)
HEAD = "body.head:input"
OVER_IMAGES = ("hint", "attention", "adapter", "crd", "sskd", "exits")
OF_THE_BATCH = (*RELATIONS, "alignment")
COUNT = 6


def lessons_of(*terms: dict[str, Any]) -> AuxiliaryLayers:
    torch.manual_seed(0)
    teacher, student = (build(ZooModel(arch="convnet", width=width), SPEC) for width in (8, 4))
    settings = load_config(DistillSettings, {"transfer": list(terms)}, [])
    return AuxiliaryLayers(settings, teacher, student, seed=3)


def terms_of(
    lessons: AuxiliaryLayers, weights: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The terms of made-up features far from 0, and these: `teacher`, `student`, and `shown` and `turned` beside."""
    rng = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return (2.0 + torch.randn(COUNT, *shape, generator=rng)).to(dtype)

    maps = {"body.stage1": 16, "body.stage2": 8, "body.stage3": 4}
    theirs, ours = (
        {place: normal(width * 2**stage, side, side) for stage, (place, side) in enumerate(maps.items())}
        for width in (8, 4)
    )
    heads = {"teacher": normal(128), "student": normal(64), "shown": normal(128), "turned": normal(64)}
    theirs[HEAD], ours[HEAD] = heads["teacher"], heads["student"]
    batch = Batch(torch.zeros(COUNT, *SPEC.shape), torch.zeros(COUNT).long(), weights=weights, teacher_features=theirs)
    logits, beside = normal(5).float(), lessons.extra_images(batch, 0, None)
    found = lessons(batch, ours, logits, 2.0, 0, beside, {HEAD: heads["shown"]}, {HEAD: heads["turned"]})
    return {name: value.detach() for name, value in found.items()}, heads


def test_terms_are_those_of_full_precision_under_mixed_precision() -> None:
    views = {"kind": "sskd", "keep": 0.5, "temperature": 0.2}
    lessons = lessons_of(*({"kind": kind} for kind in RELATIONS), {"kind": "crd"}, views)
    with torch.autocast("cpu", torch.bfloat16):
        found, heads = terms_of(lessons, dtype=torch.bfloat16)
    theirs, ours = heads["teacher"], heads["student"]
    expected = {name: relation(theirs, ours) for name, relation in RELATIONS.items()}
    assert lessons.contrast is not None
    with torch.no_grad():
        sides = zip(lessons.contrast.layers["crd"].children(), (theirs, ours), strict=True)
        projected, mine = (layer(features.float()) for layer, features in sides)
    others = torch.stack([torch.cat([projected[:row], projected[row + 1 :]]) for row in range(COUNT)])
    expected["crd"] = crd(projected, mine, others)
    expected["sskd"] = sskd(theirs, ours, heads["shown"], heads["turned"], 0.2, 0.5)
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {name: float(value) for name, value in expected.items()}, rel=1e-5
    )


def test_no_term_is_computed_in_the_precision_of_whoever_calls() -> None:
    lessons = lessons_of(*({"kind": kind} for kind in (*OVER_IMAGES, *OF_THE_BATCH)))
    plain, _ = terms_of(lessons, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, _ = terms_of(lessons, dtype=torch.bfloat16)
    assert list(mixed) == list(plain)
    assert all(torch.equal(mixed[name], value) for name, value in plain.items())


def test_weights_of_images_count_in_means_over_images_alone() -> None:
    lessons = lessons_of(*({"kind": kind} for kind in (*OVER_IMAGES, *OF_THE_BATCH)))
    plain, _ = terms_of(lessons)
    ones, _ = terms_of(lessons, torch.ones(COUNT))
    weighed, _ = terms_of(lessons, torch.tensor([0.2, 3.0, 0.0, 0.8, 0.5, 1.5]))
    assert set(plain) == {*OVER_IMAGES, *OF_THE_BATCH}
    for name, value in plain.items():
        assert float(ones[name]) == pytest.approx(float(value), rel=1e-6), name
        changed = float(weighed[name]) != pytest.approx(float(value), rel=1e-4)
        assert changed == (name in OVER_IMAGES), name
