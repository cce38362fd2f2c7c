"""Teachers: what labels images and is never trained."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor

from synthkd.models.classifier import Classifier
from synthkd.models.folding import fold_batch_norm


class FrozenTeacher:
    """A frozen network that gives logits without gradient, its BatchNorm folded into the convolutions where it can.

    Args:
        model: the teacher; itself left as it is but for eval mode and requires_grad False.
        accelerator: device and precision.
    """

    def __init__(self, model: Classifier, accelerator: Accelerator) -> None:
        self.model = model.to(accelerator.device).to(memory_format=torch.channels_last)
        self.model.eval().requires_grad_(False)
        self.spec = model.spec
        self._accelerator = accelerator
        self._fast = fold_batch_norm(self.model).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Images float32 `[N, C, H, W]` in [0, 1] to logits float32 `[N, K]`."""
        with self._accelerator.autocast():
            logits: Tensor = self._fast(images)
        return logits.float()
