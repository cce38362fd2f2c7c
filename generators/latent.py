"""Networks that map latent vectors and labels to images, with the average of their weights that is sampled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthkd.losses.objective import Loss
from synthkd.models.fitting import load_strictly
from synthkd.models.weights import finite_state, read_weights, save_weights
from synthkd.rng import Rows
from synthkd.taps import evaluating
from synthkd.training.ema import WeightAverage
from synthkd.training.learner import require_finite

WEIGHTS = "generator.safetensors"
SHORTEST = 0.85
"""Factor of latent vectors at difficulty 0. Below it images lost more variety than the teacher gained certainty."""


def latent_length(difficulty: float) -> float:
    """Factor of normal latent vectors at a difficulty d in [0, 1]: `0.85 + 0.15 d`.

    Short vectors give images near the middle of their class, as in the truncation trick (Brock et al. 2019).
    """
    return SHORTEST + (1.0 - SHORTEST) * difficulty


def descend(loss: Loss, optimizer: torch.optim.Optimizer, index: int) -> None:
    """One optimiser step of round `index`.

    Raises:
        TrainingError: the loss is not finite.
    """
    require_finite(loss, "generator", index, "round")
    optimizer.zero_grad(set_to_none=True)
    loss.total.backward()
    optimizer.step()


class AveragedNetwork:
    """A network with its Adam optimiser and an exponential average of its weights, which is sampled and saved.

    Args:
        network: latent vectors float32 `[N, latent]` and labels int64 `[N]` to images float32 `[N, C, H, W]` in [0, 1];
            on its device.
        latent: dimensions of a latent vector.
        lr: learning rate of Adam.
        betas: of Adam.
        decay: of the average, in [0, 1).
    """

    def __init__(self, network: nn.Module, latent: int, lr: float, betas: tuple[float, float], decay: float) -> None:
        self._network = network
        self._latent = latent
        self._average = WeightAverage(network, decay)
        # Those of spectral normalisation must have length 1, which an average of unit vectors has not.
        buffers = self._average.module.named_buffers()
        self._singular_vectors = [buffer for name, buffer in buffers if name.endswith(("._u", "._v"))]
        self._optimizer = torch.optim.Adam(network.parameters(), lr, betas)

    def update(self, loss: Loss, index: int) -> None:
        """One optimiser step of round `index`, then an update of the average.

        Raises:
            TrainingError: the loss is not finite.
        """
        # The average comes last, so that it includes the weights of this step.
        descend(loss, self._optimizer, index)
        self._average.update(self._network)
        for vector in self._singular_vectors:
            F.normalize(vector, dim=0, out=vector)

    @torch.no_grad()
    def sample(self, labels: Tensor, length: float, rng: Rows) -> Tensor:
        """Images of the averaged weights, each a function of its label and row alone.

        Args:
            labels: int64 `[N]`.
            length: factor of the normal latent vectors, see `latent_length`.
            rng: random rows; image i uses row `rng.start + i`.

        Returns:
            float32 `[N, C, H, W]` in [0, 1].
        """
        network = self._average.module
        device = next(network.parameters()).device
        latent = rng.normal(len(labels), self._latent) * length
        # In eval mode BatchNorm uses stored moments, so an image does not depend on the rest of its batch.
        with evaluating(network):
            images: Tensor = network(latent.to(device), labels.to(device))
        return images.contiguous()

    def save(self, directory: Path) -> None:
        """Write the averaged weights, which suffice for sampling, to `generator.safetensors`."""
        save_weights(self._average.module, directory / WEIGHTS)

    def restore(self, directory: Path) -> None:
        """Read the saved weights into the network and its average.

        Raises:
            ModelError: the file is missing, damaged or of another network.
        """
        path = directory / WEIGHTS
        state = read_weights(path)
        # Both, so that the raw weights are not left as they were drawn.
        for network in (self._average.module, self._network):
            load_strictly(network, state, str(path))

    def state_dict(self) -> dict[str, Any]:
        """State of network, average and optimiser.

        Raises:
            TrainingError: a weight is not finite.
        """
        return {
            "network": finite_state(self._network, "generator"),
            "average": self._average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; other keys are ignored."""
        self._network.load_state_dict(state["network"])
        self._average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
