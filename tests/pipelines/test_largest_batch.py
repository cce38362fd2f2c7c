"""No network of a distillation gets more images at once than the batch sizes of the recipe allow."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
from torch import Tensor, nn

from synthkd.pipelines import distill
from synthkd.types import ImageSpec

LARGEST = 6
SPEC = ImageSpec(1, 8, 8, 10)


class Counting(nn.Module):
    """A network that remembers, over all copies, the largest batch that networks of its role were given."""

    largest: ClassVar[dict[str, int]] = {}

    def __init__(self, role: str) -> None:
        super().__init__()
        self.role = role
        self.conv = nn.Conv2d(1, 4, 3, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(36, 10)

    def forward(self, x: Tensor) -> Tensor:
        Counting.largest[self.role] = max(Counting.largest.get(self.role, 0), len(x))
        logits: Tensor = self.head(self.norm(self.conv(x)).relu().flatten(1))
        return logits


def recipe(generator: dict[str, Any], test: bool, out: Path) -> dict[str, Any]:
    more: dict[str, Any] = {"test": {"kind": "digits"}, "score": {"every": 2, "images": 30}} if test else {}
    data = {"data": {"kind": "digits"}} if generator["kind"] in ("cgan", "merf") else {}
    return {
        "transfer_set": {"generator": generator, "bank": {"capacity": 40}, **data},
        "distill": {"batch_size": LARGEST, "adapt": {"every": 2, "temperature": {}}},
        "phases": [{"kind": "pregenerate", "rounds": 3}, {"kind": "joint", "steps": 4, "every": 2}],
        "grid_every": 2,
        "evaluate_every": 2,
        "device": "cpu",
        "out": str(out),
        **more,
    }


GENERATORS: dict[str, dict[str, Any]] = {
    "inversion": {"width": 4, "latent": 8, "steps": 2},
    "pixels": {"steps": 1, "sample_steps": 1},
    "cgan": {"width": 4, "critic_width": 4, "steps": 1, "one_hot": 1.0, "measure_every": 1},
    "merf": {"features": 16, "width": 8, "steps": 1, "noise_multiplier": 5.0},
}


@pytest.mark.parametrize("test", [True, False])
@pytest.mark.parametrize("kind", GENERATORS)
def test_no_pass_has_more_images_than_a_batch(kind: str, test: bool, tmp_path: Path) -> None:
    """Grids, evaluations, scores, alarms, test data and fresh samples are all of more images than a batch has."""
    Counting.largest.clear()
    generator = {"kind": kind, "batch_size": LARGEST, **GENERATORS[kind]}
    teacher = Counting("teacher")
    distill(teacher=teacher, student=Counting("student"), spec=SPEC, **recipe(generator, test, tmp_path / "run"))
    assert Counting.largest == {"teacher": LARGEST, "student": LARGEST}
