"""Losses weighed against each other while they fall: by learned variances, or by how hard each pulls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from synthkd.errors import ConfigError, DataError
from synthkd.settings import GradientBalanceSettings


class UncertaintyBalance(nn.Module):
    """Weighs losses by learned variances: `sum_i w_i (exp(-s_i) L_i + s_i) / 2` with `s_i = log sigma_i^2`.

    Homoscedastic uncertainty (Kendall, Gal and Cipolla 2018, equation 7, where all w_i are 1). The best s_i is log L_i,
    whatever w_i, so that a small loss counts as much as a large one: for losses >= 0 only. One that tends to 0 would
    drive its weight to infinity, so that each L_i has `least` added, which leaves the student's gradient alone. A loss
    of exactly 0 is none that is small but one that has nothing to say, such as that of labels in a batch without any:
    it has no part in the sum, and its variance has no gradient. Give the parameters to the student's optimiser, without
    weight decay.

    Args:
        names: of the losses.
        least: loss below which a smaller one hardly counts for more; a weight tends to 1 / (2 least) at most.

    Attributes:
        log_variances: s, float32 `[L]`, the parameter; 0 at first.

    Raises:
        ConfigError: no names, or one twice, or `least` not positive.
    """

    def __init__(self, names: Sequence[str], least: float = 1e-3) -> None:
        super().__init__()
        if not names or len(set(names)) < len(names) or not least > 0.0:
            raise ConfigError(
                f"loss balance needs the name of each loss once and least > 0, got {list(names)} and {least}; name "
                "them apart"
            )
        self.names = tuple(names)
        self.least = least
        self.log_variances = nn.Parameter(torch.zeros(len(names)))

    @property
    def weights(self) -> dict[str, float]:
        """Name -> weight `exp(-s_i) / 2` of the loss."""
        values = 0.5 * torch.exp(-self.log_variances.detach())
        return dict(zip(self.names, values.tolist(), strict=True))

    def forward(self, losses: Mapping[str, Tensor], weights: Mapping[str, float] | None = None) -> Tensor:
        """The balanced sum of scalars by name, a scalar; it may be negative. A name that is left out has no part in it.

        Args:
            losses: unweighted.
            weights: w of each of them; None: 1.

        Raises:
            ConfigError: other names than those it was made for.
        """
        if not set(losses) <= set(self.names):
            raise ConfigError(
                f"loss balance was made for {sorted(self.names)}, got {sorted(losses)}; make it for these"
            )
        values = torch.stack([value.float() for value in losses.values()])
        logs = self.log_variances[[self.names.index(name) for name in losses]]
        own = torch.ones_like(logs) if weights is None else logs.new_tensor([weights[name] for name in losses])
        own = own * (values != 0.0)
        return 0.5 * (own * (torch.exp(-logs) * (values + self.least) + logs)).sum()


def gradient_weights(
    norms: Mapping[str, float], progress: Mapping[str, float] | None = None, asymmetry: float = 1.5
) -> dict[str, float]:
    """Weights under which each loss pulls as hard as its share of the training asks for; they add up to their number.

    GradNorm (Chen et al. 2018, equation 1) wants `w_i G_i = mean(w G) r_i^a`, with r_i the loss over its first value,
    relative to the mean of that: a loss that lags pulls harder. The paper goes there by gradient steps; this is where
    they lead, `w_i ~ r_i^a / G_i`, for the caller to smooth over time.

    Args:
        norms: name -> norm G_i >= 0 of the gradient of the unweighted loss at the shared weights. Norms below 1/1000 of
            the largest count as that much, so that a loss without gradient gets a large weight but no infinite one.
        progress: name -> L_i(t) / L_i(0) >= 0; None for all alike.
        asymmetry: a >= 0; 0 gives all the same pull.

    Raises:
        DataError: no norms, values that are negative or not finite, or other names in `progress`.
    """
    progress = dict.fromkeys(norms, 1.0) if progress is None else progress
    values = [*norms.values(), *progress.values()]
    if not norms or set(progress) != set(norms) or not all(0.0 <= v < math.inf for v in values):
        raise DataError(
            f"gradient weights need finite norms and progress >= 0 of the same losses, got {dict(norms)} and "
            f"{dict(progress)}; leave out what was not computed"
        )
    least = 1e-3 * max(norms.values()) or 1.0
    mean = sum(progress.values()) / len(progress) or 1.0
    pulls = {name: (progress[name] / mean) ** asymmetry / max(norm, least) for name, norm in norms.items()}
    total = sum(pulls.values())
    return {name: len(norms) * pull / total if total else 1.0 for name, pull in pulls.items()}


class GradientBalance:
    """Weighs losses by `gradient_weights` of the gradients at one shared tensor, smoothed over time.

    A loss without any gradient there, such as that of labels in a batch that has none, is left out of a measurement and
    keeps its factor.

    Args:
        settings: how often and how fast.
        shared: the weights at which gradients are compared.

    Attributes:
        weights: name -> factor; 1 for what was never measured.
    """

    def __init__(self, settings: GradientBalanceSettings, shared: Tensor) -> None:
        self.settings = settings
        self.weights: dict[str, float] = {}
        self._shared = shared
        self._first: dict[str, float] = {}
        self._calls = 0

    def __call__(self, losses: Mapping[str, Tensor], weights: Mapping[str, float] | None = None) -> Tensor:
        """The balanced sum of scalars by name, a scalar.

        Args:
            losses: unweighted, so that a weight that moves is no progress.
            weights: by which they pull beside their factors; None: 1.
        """
        if self._calls % self.settings.every == 0:
            self._measure(losses)
        self._calls += 1
        own = dict.fromkeys(losses, 1.0) if weights is None else weights
        return torch.stack([own[name] * self.weights.get(name, 1.0) * loss for name, loss in losses.items()]).sum()

    def _measure(self, losses: Mapping[str, Tensor]) -> None:
        norms, progress = {}, {}
        for name, loss in losses.items():
            (gradient,) = torch.autograd.grad(loss, self._shared, retain_graph=True, allow_unused=True)
            if gradient is None or not bool(gradient.any()):
                continue
            norms[name] = float(gradient.norm())
            first = self._first.setdefault(name, float(loss.detach()))
            progress[name] = max(0.0, float(loss.detach()) / first) if first > 0.0 else 1.0
        if not norms or not all(map(math.isfinite, [*norms.values(), *progress.values()])):
            return  # the learner stops the run by name where the loss itself is not finite
        asked = gradient_weights(norms, progress, self.settings.asymmetry)
        for name, weight in asked.items():
            before = self.weights.get(name, 1.0)
            self.weights[name] = before + self.settings.rate * (weight - before)

    def state_dict(self) -> dict[str, Any]:
        return {"weights": dict(self.weights), "first": dict(self._first), "calls": self._calls}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.weights, self._first = dict(state["weights"]), dict(state["first"])
        self._calls = int(state["calls"])
