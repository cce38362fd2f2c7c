"""A module with its optimiser: where a loss becomes a change of weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from synthkd.errors import TrainingError
from synthkd.losses.objective import Loss
from synthkd.models.channels_last import channels_last
from synthkd.models.weights import finite_state
from synthkd.schedules import learning_rate_factor
from synthkd.settings import OptimizerSettings
from synthkd.training.ema import WeightAverage


def optimizer_for(settings: OptimizerSettings, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of the settings; biases and norm weights (one dimension) are not decayed."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if settings.kind == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0)
    adam = torch.optim.AdamW if settings.kind == "adamw" else torch.optim.Adam
    return adam(groups, lr=settings.lr, betas=(settings.momentum, 0.999))


def require_finite(loss: Loss, who: str, step: int, unit: str = "step") -> None:
    """Raise `TrainingError`, naming the step (or round) and the terms, unless the loss is finite."""
    if torch.isfinite(loss.total):
        return
    bad = [f"{name}={float(value.detach())}" for name, value in loss.terms.items() if not torch.isfinite(value)]
    raise TrainingError(
        f"{who}: the loss is not finite at {unit} {step} ({', '.join(bad) or 'a sum of finite terms'}); "
        "lower the learning rate or the weight of that term"
    )


class Learner:
    """Trains a module, and helper modules beside it that are never saved with it.

    Args:
        name: who learns, for logs and errors ("student").
        module: what is trained, evaluated and saved.
        settings: optimiser, curve of the learning rate, clipping, average.
        total: steps over which the learning rate moves.
        accelerator: device, precision and processes.
        helpers: modules trained jointly (regressors of hints), or None.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        settings: OptimizerSettings,
        total: int,
        accelerator: Accelerator,
        helpers: nn.Module | None = None,
    ) -> None:
        self.name = name
        self.total = total
        self._settings = settings
        self._accelerator = accelerator
        # convolutions are faster so, on CPUs too; other layers do not mind
        self.module = channels_last(module.to(accelerator.device))
        self._helpers = None if helpers is None else helpers.to(accelerator.device)
        trained = [self.module] if self._helpers is None else [self.module, self._helpers]
        self._parameters = [p for m in trained for p in m.parameters() if p.requires_grad]
        optimizer = optimizer_for(settings, self._parameters)
        self._average = WeightAverage(module, settings.ema) if settings.ema > 0 else None
        self.model: nn.Module
        self.model, self._optimizer = accelerator.prepare(self.module, optimizer)
        self.helpers: nn.Module | None = None if self._helpers is None else accelerator.prepare(self._helpers)

    def synchronise(self) -> nn.Module:
        """The module, with the buffers (BatchNorm moments) of the main process in every process."""
        if self._accelerator.num_processes > 1:
            for buffer in self.module.buffers():
                torch.distributed.broadcast(buffer, 0)
        return self.module

    @property
    def evaluated(self) -> nn.Module:
        """What is evaluated and saved: the averaged weights where there is an average, the module otherwise."""
        return self.module if self._average is None else self._average.module

    def update(self, loss: Loss, step: int) -> dict[str, Tensor | float]:
        """One optimiser step.

        Args:
            loss: what to minimise.
            step: 0-based step of `total`, which sets the learning rate.

        Returns:
            The terms, the total, the gradient's norm and the learning rate, named `<name>/...`, for the log.

        Raises:
            TrainingError: when the loss or a gradient is not finite; the weights are as before the step.
        """
        require_finite(loss, self.name, step)
        rate = self._settings.lr * learning_rate_factor(self._settings, step, self.total)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        self._accelerator.backward(loss.total)
        norm = self._clip()
        # a gradient scaler skips steps that overflow, as it should; without one a bad gradient is an error
        if self._accelerator.scaler is None and not torch.isfinite(norm):
            self._optimizer.zero_grad(set_to_none=True)
            raise TrainingError(
                f"{self.name}: the gradient of {', '.join(loss.terms)} is not finite at step {step}; "
                "lower the learning rate or set clip"
            )
        self._optimizer.step()
        if self._average is not None:
            self._average.update(self.module)
        logged: dict[str, Tensor | float] = {f"{self.name}/{k}": v.detach() for k, v in loss.terms.items()}
        return logged | {
            f"{self.name}/loss": loss.total.detach(),
            f"{self.name}/gradient_norm": norm,
            f"{self.name}/learning_rate": rate,
        }

    def _clip(self) -> Tensor:
        limit = self._settings.clip
        norm: Tensor | None = self._accelerator.clip_grad_norm_(
            self._parameters, float("inf") if limit is None else limit
        )
        return torch.zeros(()) if norm is None else norm

    def state_dict(self) -> dict[str, Any]:
        """All that a checkpoint needs. Raises `TrainingError` where the module is not finite any more."""
        return {
            "module": finite_state(self.module, self.name),
            "helpers": {} if self._helpers is None else finite_state(self._helpers, f"{self.name}: its helper layers"),
            "optimizer": self._optimizer.state_dict(),
            "average": {} if self._average is None else self._average.state_dict(),
            "scaler": {} if self._accelerator.scaler is None else self._accelerator.scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        if self._helpers is not None:
            self._helpers.load_state_dict(state["helpers"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(state["scaler"])
