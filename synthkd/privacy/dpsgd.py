"""DP-SGD: a model trained on clipped gradients of single examples with noise on their sum (Abadi et al. 2016).

The guarantee holds for what is released at the end and for every step on the way, but only where each part of it is
kept: Poisson batches, no layer that mixes examples, no buffer that sees them, noise that nobody can draw again, and a
count of every step that was ever taken, those of interrupted runs included. Opacus clips and adds the noise.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from synthkd.data.augment import augment_real
from synthkd.errors import CheckpointError, ConfigError, TrainingError
from synthkd.imports import optional
from synthkd.privacy.accounting import Epsilon, check_delta, epsilon
from synthkd.privacy.calibration import noise_for
from synthkd.privacy.claims import dp_statement
from synthkd.privacy.journal import Journal
from synthkd.privacy.ledger import Ledger, PoissonSteps
from synthkd.rng import stream
from synthkd.schedules import learning_rate_factor
from synthkd.settings import AugmentSettings, DPSettings, OptimizerSettings
from synthkd.training.ema import WeightAverage
from synthkd.training.learner import optimizer_for
from synthkd.types import Batch, to_float

LossOf = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Mechanism:
    """DP-SGD as it is run.

    Attributes:
        examples: how many there are, taken as public.
        sample_rate: probability of each to be in a batch.
        noise_multiplier: standard deviation of the noise over `clip`.
        clip: largest norm of an example's gradient.
        steps: planned.
        delta: of the claim.
        insecure: the noise can be drawn again from a seed, so nothing is claimed.
    """

    examples: int
    sample_rate: float
    noise_multiplier: float
    clip: float
    steps: int
    delta: float
    insecure: bool


def plan_mechanism(settings: DPSettings, examples: int, batch_size: int, steps: int) -> Mechanism:
    """The mechanism of the settings, its noise calibrated to the budget where one is given.

    Raises:
        ConfigError: a delta not below 1 / examples, more images in a batch than there are, or no noise that will do.
        MissingExtraError: dp-accounting is not installed.
    """
    check_delta(settings.delta, examples)
    if batch_size > examples:
        raise ConfigError(f"training.batch_size: {batch_size} expected images of {examples}; take fewer")
    rate = batch_size / examples
    noise = settings.noise_multiplier
    if noise is None:
        assert settings.epsilon is not None
        noise = noise_for(rate, steps, settings.epsilon, settings.delta)
    insecure = settings.test_seed is not None
    return Mechanism(examples, rate, noise, settings.clip, steps, settings.delta, insecure)


def require_trainable(model: nn.Module) -> None:
    """Refuse a model for which clipped gradients of single examples do not exist or do not cover what it learns.

    Raises:
        ConfigError: a BatchNorm layer, or another buffer that training would change.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ConfigError(
                f"training.dp: layer {name} is a BatchNorm, which mixes the examples of a batch and keeps their mean; "
                "set model.norm=group"
            )
        if isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.track_running_stats:
            raise ConfigError(f"training.dp: layer {name} keeps statistics of its inputs; turn track_running_stats off")


class PoissonSource:
    """Batches in which each example is by an independent coin, so their size varies and may be 0.

    Args:
        images: uint8 `[N, C, H, W]`.
        labels: int64 `[N]`.
        mechanism: the rate.
        augment: augmentation of each example by itself, which costs nothing.
        entropy: step -> generator, a new one each time.
        device: where batches go.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        mechanism: Mechanism,
        augment: AugmentSettings,
        entropy: Callable[[int], torch.Generator],
        device: torch.device,
    ) -> None:
        self._images, self._labels = images, labels
        self._rate = mechanism.sample_rate
        self._augment = augment
        self._entropy = entropy
        self._device = device

    def batch(self, step: int) -> Batch:
        """The batch of a step: images float32 in [0, 1] and labels."""
        rng = self._entropy(step)
        rows = (torch.rand(len(self._labels), generator=rng) < self._rate).nonzero()[:, 0]
        images = to_float(self._images[rows]).to(self._device)
        if len(rows):
            images = augment_real(images, self._augment, rng)
        return Batch(images, self._labels[rows].to(self._device))


class PrivateLearner:
    """Trains a module by DP-SGD; the counterpart of `synthkd.training.learner.Learner`.

    Args:
        name: who learns, for logs and errors.
        module: what is trained, evaluated and saved.
        settings: optimiser, curve of the learning rate, average; `clip` is that of the DP settings.
        mechanism: of `plan_mechanism`.
        dp: how many examples are held at a time, and the seed of a test.
        device: where it trains.
        journal: of the steps.

    Raises:
        ConfigError: see `require_trainable`; a clip of the whole gradient, or layers that Opacus does not know.
        MissingExtraError: opacus or dp-accounting is not installed.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        settings: OptimizerSettings,
        mechanism: Mechanism,
        dp: DPSettings,
        device: torch.device,
        journal: Journal,
    ) -> None:
        require_trainable(module)
        if settings.clip is not None:
            raise ConfigError("training.optimizer.clip: DP-SGD clips each example's gradient; set training.dp.clip")
        opacus = optional("opacus", "dp", "training.dp")
        optional("dp_accounting", "dp", "training.dp")
        self.name = name
        self.mechanism = mechanism
        self.module = module.to(device)
        self._settings = settings
        self._dp = dp
        self._device = device
        self._journal = journal
        try:
            self.model: nn.Module = opacus.GradSampleModule(self.module, loss_reduction="mean", strict=True)
        except NotImplementedError as error:  # a layer with parameters and buffers
            raise ConfigError(f"training.dp: {str(error)[:200]}; use a model without buffers") from error
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        self._optimizer = opacus.optimizers.DPOptimizer(
            optimizer=optimizer_for(settings, parameters),
            noise_multiplier=mechanism.noise_multiplier,
            max_grad_norm=mechanism.clip,
            expected_batch_size=mechanism.sample_rate * mechanism.examples,
            loss_reduction="mean",
        )
        self._average = WeightAverage(self.module, settings.ema) if settings.ema > 0 else None
        self._buffers = {name: value.clone() for name, value in self.module.named_buffers()}

    def entropy(self, purpose: str) -> Callable[[int], torch.Generator]:
        """Step -> a new generator: seeded by the operating system and kept by nobody, or by the test's seed."""

        def generator(step: int) -> torch.Generator:
            if self._dp.test_seed is not None:
                return stream(self._dp.test_seed, f"dp/{purpose}", step)
            return torch.Generator().manual_seed(int.from_bytes(os.urandom(8), "little") >> 1)

        return generator

    @property
    def evaluated(self) -> nn.Module:
        """The averaged weights where there is an average (it costs nothing), the module otherwise."""
        return self.module if self._average is None else self._average.module

    @property
    def ledger(self) -> Ledger:
        """Every step ever taken, those of interrupted runs included."""
        return self._journal.ledger

    def spent(self) -> Epsilon:
        """What the ledger comes to."""
        return epsilon(self.ledger, self.mechanism.delta)

    def update(self, draw: Callable[[], Batch], loss_of: LossOf, step: int) -> dict[str, Tensor | float]:
        """One step on a batch of a `PoissonSource`.

        Args:
            draw: gives the batch, of any size, 0 included; asked for it once the step is charged.
            loss_of: (logits, labels) -> the mean loss.
            step: 0-based step, which sets the learning rate.

        Returns:
            The learning rate, for the log; losses and gradients of private examples are not shown.

        Raises:
            TrainingError: the weights are not finite after the step, or a buffer of the model has changed.
        """
        rate = self._settings.lr * learning_rate_factor(self._settings, step, self.mechanism.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        noise = self.entropy("noise")(step)
        if self._device.type != "cpu":
            noise = torch.Generator(self._device).manual_seed(noise.initial_seed())
        self._optimizer.generator = noise
        self._journal.charge(PoissonSteps(self.mechanism.sample_rate, self.mechanism.noise_multiplier, steps=1))
        batch = draw()
        parts = list(range(0, len(batch), self._dp.physical_batch)) or [0]
        for first in parts:
            rows = slice(first, first + self._dp.physical_batch)
            images, labels = batch.images[rows], batch.labels[rows]
            self._optimizer.signal_skip_step(do_skip=first != parts[-1])
            self._optimizer.zero_grad(set_to_none=True)
            logits = self.model(images).float()
            loss = loss_of(logits, labels) if len(labels) else logits.sum()
            with warnings.catch_warnings():  # images need no gradient, which Opacus' hooks remark on
                warnings.filterwarnings("ignore", message="Full backward hook is firing")
                loss.backward()
            self._optimizer.step()
        if not all(bool(torch.isfinite(p).all()) for p in self.module.parameters()):
            raise TrainingError(
                f"{self.name}: the weights are not finite after step {step}; lower training.optimizer.lr"
            )
        for name, value in self.module.named_buffers():
            if not torch.equal(value, self._buffers[name]):
                raise TrainingError(
                    f"{self.name}: buffer {name} changed in training, which no noise covers; use a model without it"
                )
        if self._average is not None:
            self._average.update(self.module)
        return {f"{self.name}/learning_rate": rate}

    def finished(self) -> nn.Module:
        """The trained module, free of what counted its gradients."""
        self.model.remove_hooks()  # type: ignore[operator]
        for parameter in self.module.parameters():
            for attribute in ("grad_sample", "summed_grad"):
                if hasattr(parameter, attribute):
                    delattr(parameter, attribute)
            parameter.grad = None
        return self.evaluated

    def state_dict(self) -> dict[str, Any]:
        return {
            "module": dict(self.module.state_dict()),
            "optimizer": self._optimizer.original_optimizer.state_dict(),
            "average": {} if self._average is None else self._average.state_dict(),
            "steps": self._journal.steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if "steps" not in state:
            raise CheckpointError(f"{self.name}: the checkpoint does not say how many private steps were taken")
        self._journal.require(steps=int(state["steps"]))
        self.module.load_state_dict(state["module"])
        self._optimizer.original_optimizer.load_state_dict(state["optimizer"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])


def statement(mechanism: Mechanism, ledger: Ledger, spent: Epsilon) -> dict[str, Any]:
    """What a finished run may claim, for result.json and the model's own notes; `insecure` claims nothing."""
    return dp_statement(
        ledger,
        spent,
        mechanism.examples,
        mechanism.insecure,
        sample_rate=mechanism.sample_rate,
        noise_multiplier=mechanism.noise_multiplier,
        clip=mechanism.clip,
        steps_planned=mechanism.steps,
        sampler="Poisson",
    )
