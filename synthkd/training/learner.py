"""A module with its optimizer, and the step that minimises a loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn

from synthkd.errors import ModelError, TrainingError
from synthkd.losses.objective import Loss
from synthkd.models.channels_last import channels_last
from synthkd.models.weights import finite_state
from synthkd.processes import ONE_PROCESS, Processes
from synthkd.schedules import learning_rate_factor
from synthkd.settings import OptimizerSettings
from synthkd.training.ema import WeightAverage


def optimizer_for(settings: OptimizerSettings, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of the settings, without weight decay for biases and norm weights (at most one dimension)."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.kind == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0)
    adam = torch.optim.AdamW if settings.kind == "adamw" else torch.optim.Adam
    # The momentum is the first beta; the second is the default of Kingma and Ba 2015.
    return adam(groups, lr=settings.lr, betas=(settings.momentum, 0.999))


def require_finite(loss: Loss, who: str, step: int, unit: str = "step") -> None:
    """Raise `TrainingError` unless the loss is finite; the message names the terms and the step (or another unit)."""
    # The total alone decides, since on a GPU every test waits for the device.
    if torch.isfinite(loss.total):
        return
    bad = [f"{name}={float(value.detach())}" for name, value in loss.terms.items() if not torch.isfinite(value)]
    raise TrainingError(
        f"{who}: the loss is not finite at {unit} {step} ({', '.join(bad) or 'a sum of finite terms'}); "
        "lower the learning rate or the weight of that term"
    )


class Learner:
    """Trains a module, and with it helper modules that are not part of the saved model.

    Args:
        name: prefix of the logged names and subject of the errors, e.g. "student".
        module: the network that is trained, evaluated and saved.
        settings: optimizer, learning-rate curve, clipping and weight average.
        total: number of steps of the learning-rate curve.
        accelerator: device, precision and processes.
        helpers: modules that are trained along (e.g. the regressors of hints), or None.
        extensions: steps of each extension of the run, which warms the learning rate again.
        processes: that share the forward passes of whole batches; one: in several processes each passes a part of a
            batch through the network, and accelerate averages the gradients.

    Attributes:
        module: the network itself, on the device.
        model: the network as prepared by accelerate (in several processes wrapped for them, unless they share passes);
            run forward passes of the training on this one, in `accelerator.autocast()`.
        helpers: the helper modules as prepared by accelerate, or None.
        processes: as given.

    Raises:
        ModelError: no parameter of the module requires a gradient.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        settings: OptimizerSettings,
        total: int,
        accelerator: Accelerator,
        helpers: nn.Module | None = None,
        extensions: Sequence[int] = (),
        processes: Processes = ONE_PROCESS,
    ) -> None:
        self.name = name
        self.processes = processes
        self.total = total
        self._extensions = tuple(extensions)
        self._settings = settings
        self._accelerator = accelerator
        # Convolutions are faster in this memory format, on CPUs too; other layers are as fast.
        self.module = channels_last(module.to(accelerator.device))
        self._helpers = None if helpers is None else helpers.to(accelerator.device)
        if not any(parameter.requires_grad for parameter in self.module.parameters()):
            raise ModelError(f"the {name} has no parameter that requires a gradient; call requires_grad_(True) on it")
        modules = [self.module] if self._helpers is None else [self.module, self._helpers]
        self._parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
        optimizer = optimizer_for(settings, self._parameters)
        # The average copies the plain module, before accelerate wraps it in several processes.
        self._average = WeightAverage(module, settings.ema) if settings.ema > 0 else None
        self.model: nn.Module = self.module
        self.helpers: nn.Module | None = self._helpers
        if processes.world == 1:
            self.model, self._optimizer = accelerator.prepare(self.module, optimizer)
            self.helpers = None if self._helpers is None else accelerator.prepare(self._helpers)
            for one in modules:  # in mixed precision accelerate exchanges `forward`, also for what tests the network
                extract_model_from_parallel(one, keep_fp32_wrapper=False)
        else:  # a wrapper of accelerate would average gradients that are parts of a sum
            self._optimizer = accelerator.prepare(optimizer)

    def synchronise(self) -> nn.Module:
        """Copy the buffers (BatchNorm moments) of the main process to every process, and return the module."""
        # Each process updates its moments by its own rows, while weights are equal everywhere. A generator that reads
        # the student must read the same one in every process.
        if self._accelerator.num_processes > self.processes.world:
            for buffer in self.module.buffers():
                torch.distributed.broadcast(buffer, 0)
        return self.module

    @property
    def steps(self) -> int:
        """All steps: those of the learning-rate curve and of the extensions."""
        return self.total + sum(self._extensions)

    @property
    def evaluated(self) -> nn.Module:
        """The network to evaluate and save: with the averaged weights where there is an average, else `module`."""
        return self.module if self._average is None else self._average.module

    def update(self, loss: Loss, step: int) -> dict[str, Tensor | float]:
        """Take one optimizer step.

        Args:
            loss: scalar to minimise, with its named terms.
            step: 0-based step of `steps`; it determines the learning rate.

        Returns:
            Numbers for the log, named `<name>/...`: the terms, the total, the gradient's norm before clipping, and the
            learning rate.

        Raises:
            TrainingError: the loss or a gradient is not finite (in fp16 a gradient at a scale below 1); the weights are
                as before the step.
        """
        # Before the backward pass, whose gradients would not be finite either.
        require_finite(loss, self.name, step)
        rate = self._settings.lr * learning_rate_factor(self._settings, step, self.total, self._extensions)
        # The rate is a function of the step, so a resumed run has no scheduler to restore.
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        self._accelerator.backward(loss.total)
        self.processes.add_gradients(self.module.parameters())
        norm = self._clip()
        # In fp16 the gradient scaler skips a step that overflows, and halves its scale; one below 1 no longer enlarges
        # the gradient, so the scale was not the cause. Otherwise a gradient that is not finite would destroy the
        # weights.
        scaler = self._accelerator.scaler
        if not torch.isfinite(norm) and (scaler is None or scaler.get_scale() < 1.0):
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
        """Clip the gradient if the settings say so; returns its norm before that, a float32 scalar."""
        # An infinite limit changes nothing; the call then only computes the norm for the log and the check.
        limit = float("inf") if self._settings.clip is None else self._settings.clip
        norm: Tensor | None = self._accelerator.clip_grad_norm_(self._parameters, limit)
        return torch.zeros(()) if norm is None else norm

    def state_dict(self) -> dict[str, Any]:
        """The state of the module, helpers, optimizer, average and gradient scaler.

        Raises:
            TrainingError: a weight is not finite.
        """
        scaler = self._accelerator.scaler
        return {
            "module": finite_state(self.module, self.name),
            "helpers": {} if self._helpers is None else finite_state(self._helpers, f"{self.name}: its helper layers"),
            "optimizer": self._optimizer.state_dict(),
            "average": {} if self._average is None else self._average.state_dict(),
            "scaler": {} if scaler is None else scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        parts = {
            "module": self.module,
            "helpers": self._helpers,
            "optimizer": self._optimizer,
            "average": self._average,
            "scaler": self._accelerator.scaler,
        }
        for name, part in parts.items():
            if part is not None:
                part.load_state_dict(state[name])
