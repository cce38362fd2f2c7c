"""Strided 1x1 convolutions of few channels learn without the oneDNN kernel that writes behind its workspace."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.resnet import BasicBlock, ResNet

from synthkd.losses.objective import Loss
from synthkd.models import Classifier, build
from synthkd.models.channels_last import VECTOR
from synthkd.models.slimmable import Slimmable
from synthkd.settings import OptimizerSettings, WidthSettings, ZooModel
from synthkd.training.learner import Learner
from synthkd.types import ImageSpec

SPEC = ImageSpec(1, 16, 16, 10)

TRAIN = """
import sys
from synthkd.pipelines.cli import main
sys.exit(main(["distill", "digits", "device=cpu", f"out={sys.argv[1]}/run", "teacher.model.arch=convnet",
               "teacher.model.depth=null", "teacher.training.steps=2", "test=null", "student.arch=resnet",
               "student.width=4", "student.depth=8", "grid_every=100",
               'phases=[{"kind":"pregenerate","rounds":1},{"kind":"refine","steps":12}]']))
"""


class _Risky(TorchDispatchMode):
    """Counts strided 1x1 convolutions that learn from few channels, and those of them that read channels_last."""

    learned = 0
    risky = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.convolution_backward.default:
            _, images, weight, _, stride, *_ = args
            wants_weights = args[-1][1]
            if wants_weights and tuple(weight.shape[2:]) == (1, 1) and max(stride) > 1 and images.shape[1] < VECTOR:
                self.learned += 1
                contiguous = images.is_contiguous() and weight.stride()[2:] == (1, 1)
                self.risky += not contiguous
        return function(*args, **(kwargs or {}))


def learner_of(kind: str) -> Learner:
    torch.manual_seed(0)
    module: torch.nn.Module
    if kind == "zoo":
        module = build(ZooModel(arch="resnet", width=4, depth=8), SPEC)
    elif kind == "slimmable":
        module = Slimmable(WidthSettings(), ZooModel(arch="resnet", width=4, depth=8), SPEC)
    else:
        body = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)
        body.conv1 = torch.nn.Conv2d(1, 64, 3, padding=1)
        body.layer1 = torch.nn.Conv2d(64, 4, 1)
        body.layer2 = torch.nn.Sequential(BasicBlock(4, 8, 2, torch.nn.Conv2d(4, 8, 1, 2)))
        body.layer3, body.layer4 = torch.nn.Conv2d(8, 8, 1), torch.nn.Conv2d(8, 512, 1)
        module = Classifier(body, SPEC)
    settings = OptimizerSettings(ema=0.9)
    return Learner("student", module, settings, 4, Accelerator(cpu=True))


@pytest.mark.parametrize("kind", ["zoo", "slimmable", "torchvision"])
def test_no_such_layer_learns_in_channels_last(kind: str) -> None:
    learner, seen = learner_of(kind), _Risky()
    with seen:
        for step in range(2):
            images = torch.rand(4, *SPEC.shape, generator=torch.Generator().manual_seed(step))
            loss = learner.model(images).square().mean()
            learner.update(Loss(loss, {"square": loss}), step)
    assert seen.learned > 0
    assert seen.risky == 0


def test_layers_around_them_stay_in_channels_last() -> None:
    learner, found = learner_of("zoo"), []
    shortcut = learner.module.get_submodule("body.stage2.0.shortcut.0")
    shortcut.register_forward_hook(lambda *passed: found.append(passed[-1]))
    learner.model(torch.rand(4, *SPEC.shape))
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert not found[0].is_contiguous()


def test_a_narrow_resnet_trains_with_the_lower_instruction_set(tmp_path: Path) -> None:
    env = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, str(tmp_path)], env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
