"""Teachers: what labels images and is never trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from synthkd.models.channels_last import channels_last
from synthkd.models.classifier import Classifier
from synthkd.models.contract import finite_logits
from synthkd.models.folding import fold_batch_norm
from synthkd.taps import observe
from synthkd.types import Outputs


class FrozenTeacher:
    """A frozen network that labels images without gradient.

    Its BatchNorm is folded into the convolutions before it.

    Args:
        model: the teacher; itself left as it is but for device, eval mode and requires_grad False.
        accelerator: device and precision.
        features: module paths whose outputs every pass shows beside the logits.
        name: for errors.

    Attributes:
        model, spec, features: as given.
    """

    def __init__(
        self, model: Classifier, accelerator: Accelerator, features: Sequence[str] = (), name: str = "the teacher"
    ) -> None:
        self._name = name
        self.model = channels_last(model.to(accelerator.device))
        self.model.eval().requires_grad_(False)
        self.spec = model.spec
        self._accelerator = accelerator
        self.features = tuple(features)
        self._fast = fold_batch_norm(self.model, self.features).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Outputs:
        """Logits float32 `[N, K]`, and the features asked for, of images float32 `[N, C, H, W]` in [0, 1].

        Raises:
            ModelError: logits that are not finite.
        """
        with self._accelerator.autocast():
            seen = observe(self._fast, images, self.features)
        return Outputs(finite_logits(seen.logits.float(), self._name), seen.features)

    def logits(self, images: Tensor) -> Tensor:
        """Logits alone, float32 `[N, K]`."""
        return self(images).logits
