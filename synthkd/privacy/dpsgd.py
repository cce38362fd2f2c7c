"""DP-SGD: each example's gradient is clipped, and noise is added to their sum (Abadi et al. 2016, algorithm 1).

The guarantee covers the model after every step. It holds only if batches are Poisson-sampled, no layer mixes examples,
no buffer depends on them, nobody can draw the noise again, and every step that was ever taken is counted, those of
interrupted runs included. Opacus clips the gradients and adds the noise.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from synthkd.data.augment import augment_real
from synthkd.data.read.on_disk import Pixels
from synthkd.errors import CheckpointError, ConfigError, TrainingError
from synthkd.imports import optional
from synthkd.privacy.accounting import Epsilon, check_delta, epsilon
from synthkd.privacy.calibration import noise_for
from synthkd.privacy.claims import dp_statement
from synthkd.privacy.journal import Journal
from synthkd.privacy.ledger import Ledger, PoissonSteps
from synthkd.privacy.own_gradients import (
    require_gradients,
    require_independent,
    require_one_row_each,
    require_trainable,
)
from synthkd.rng import stream, unpredictable
from synthkd.schedules import learning_rate_factor
from synthkd.settings import AugmentSettings, DPSettings, OptimizerSettings
from synthkd.training.ema import WeightAverage
from synthkd.training.learner import optimizer_for
from synthkd.types import Batch, to_float

LossOf = Callable[[Tensor, Tensor], Tensor]
"""Logits float32 `[N, K]` and labels int64 `[N]` -> the mean loss, a scalar."""


@dataclass(frozen=True)
class Mechanism:
    """The parameters of a run of DP-SGD.

    Attributes:
        examples: size of the data set, taken as public.
        sample_rate: probability with which each example is in a batch, in (0, 1].
        noise_multiplier: standard deviation of the noise on the sum of gradients, divided by `clip`; 0 is no noise.
        clip: largest norm (L2) of an example's gradient; longer gradients are scaled down to it.
        steps: planned steps.
        delta: of the claim, below 1 / examples.
        insecure: True where the noise can be drawn again from a seed; then nothing is claimed.
    """

    examples: int
    sample_rate: float
    noise_multiplier: float
    clip: float
    steps: int
    delta: float
    insecure: bool


def plan_mechanism(settings: DPSettings, examples: int, batch_size: int, steps: int) -> Mechanism:
    """The mechanism that the settings describe, with the noise calibrated to the budget where one is given.

    Args:
        settings: budget or noise, delta and clipping.
        examples: size of the data set.
        batch_size: expected size of a batch, at most `examples`.
        steps: planned steps.

    Raises:
        ConfigError: a delta not below 1 / examples, a batch larger than the data set, or a budget that no noise keeps.
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


@dataclass(frozen=True)
class PoissonSource:
    """Poisson-sampled batches: an independent coin puts each example into a batch, whose size varies and may be 0.

    Attributes:
        images: uint8 `[N, C, H, W]`, in memory or on disk.
        labels: int64 `[N]`.
        mechanism: its sample rate is used.
        augment: augmentation of each example alone, which costs no privacy.
        entropy: step -> a new random generator.
        device: of the batches.
    """

    images: Pixels
    labels: Tensor
    mechanism: Mechanism
    augment: AugmentSettings
    entropy: Callable[[int], torch.Generator]
    device: torch.device

    def batch(self, step: int) -> Batch:
        """The batch of a step: images float32 `[n, C, H, W]` in [0, 1] and labels int64 `[n]`, n at least 0."""
        # The accountant's formula for sampled batches holds for independent coins, and not for batches of a fixed size.
        rng = self.entropy(step)
        rows = (torch.rand(len(self.labels), generator=rng) < self.mechanism.sample_rate).nonzero()[:, 0]
        images = to_float(self.images[rows]).to(self.device)
        if len(rows):
            images = augment_real(images, self.augment, rng)
        return Batch(images, self.labels[rows].to(self.device))


class PrivateLearner:
    """Trains a module by DP-SGD; the counterpart of `synthkd.training.learner.Learner`.

    Attributes:
        name: of the module, for logs and errors.
        mechanism: of `plan_mechanism`.
        module: the module that is trained, on the device; its layers work out of place.
        model: the module inside Opacus, which computes gradients of single examples; call this one in training.

    Args:
        name: as above.
        module: as above.
        settings: optimiser, learning-rate schedule and weight average; its `clip` must be None.
        mechanism: as above.
        dp: number of examples whose gradients are held at a time, and the seed for tests.
        device: where it trains.
        journal: records each step before it is taken.

    Raises:
        ConfigError: see `require_trainable`; `settings.clip` is set; or a layer that Opacus does not support.
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
        optional("dp_accounting", "dp", "training.dp")  # for the claim at the end; an error now costs no training
        self.name = name
        self.mechanism = mechanism
        self.module = module.to(device)
        self._settings = settings
        self._dp = dp
        self._device = device
        self._journal = journal
        for layer in self.module.modules():  # Opacus' hooks hand views to layers, which may not change in place
            if getattr(layer, "inplace", False) is True:
                layer.inplace = False  # type: ignore[assignment]
        try:
            self.model: nn.Module = opacus.GradSampleModule(self.module, loss_reduction="mean", strict=True)
        except NotImplementedError as error:  # a layer with parameters and buffers
            raise ConfigError(f"training.dp: {str(error)[:200]}; use a model without buffers") from error
        self._parameters = [p for p in self.module.parameters() if p.requires_grad]
        self._optimizer = opacus.optimizers.DPOptimizer(
            optimizer=optimizer_for(settings, self._parameters),
            noise_multiplier=mechanism.noise_multiplier,
            max_grad_norm=mechanism.clip,
            # The noisy sum is divided by the expected size: the actual size depends on who is in the batch.
            expected_batch_size=mechanism.sample_rate * mechanism.examples,
            loss_reduction="mean",
        )
        self._average = WeightAverage(self.module, settings.ema) if settings.ema > 0 else None
        self._tried = False
        self._buffers = {name: value.clone() for name, value in self.module.named_buffers()}

    def entropy(self, purpose: str) -> Callable[[int], torch.Generator]:
        """A function from a step to a new random generator.

        The operating system gives its seed, which is stored nowhere, or `dp.test_seed` does.

        Args:
            purpose: name of the random stream under `dp.test_seed`.
        """

        def generator(step: int) -> torch.Generator:
            if self._dp.test_seed is not None:
                return stream(self._dp.test_seed, f"dp/{purpose}", step)
            # Not a stream of the run's seed: whoever knows the seed could subtract the noise.
            return unpredictable()

        return generator

    @property
    def evaluated(self) -> nn.Module:
        """The module with averaged weights where there is an average (which costs no privacy), else the module."""
        return self.module if self._average is None else self._average.module

    @property
    def ledger(self) -> Ledger:
        """All steps ever taken, those of interrupted runs included."""
        return self._journal.ledger

    def spent(self) -> Epsilon:
        """The epsilon of the ledger, at the delta of the mechanism."""
        return epsilon(self.ledger, self.mechanism.delta)

    def update(self, draw: Callable[[], Batch], loss_of: LossOf, step: int) -> dict[str, Tensor | float]:
        """One step on a batch of a `PoissonSource`.

        Args:
            draw: draws the batch, of any size; it is called once the step is charged.
            loss_of: the mean loss of logits and labels.
            step: 0-based step, which sets the learning rate.

        Returns:
            The learning rate, for the log. Losses and gradients of private examples are not logged.

        Raises:
            ConfigError: an image acts on the logits of others or has several rows in a layer, or a parameter is unused.
            TrainingError: the weights are not finite after the step, or a buffer of the model has changed.
        """
        self.model.train()
        rate = self._settings.lr * learning_rate_factor(self._settings, step, self.mechanism.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.generator = self._noise(step)
        # Charged before the batch exists: after a kill the ledger may count a step too many, never one too few.
        self._journal.charge(PoissonSteps(self.mechanism.sample_rate, self.mechanism.noise_multiplier, steps=1))
        batch = draw()
        if not self._tried:
            require_independent(self.module, batch.images)
            self._tried = True
        # An empty batch takes a step too: its noise is part of the mechanism, and to leave it out would show the size.
        starts = list(range(0, len(batch), self._dp.physical_batch)) or [0]
        for start in starts:
            rows = slice(start, start + self._dp.physical_batch)
            # Opacus sums clipped gradients until the step that is not skipped, which adds the noise once.
            self._optimizer.signal_skip_step(do_skip=start != starts[-1])
            self._optimizer.zero_grad(set_to_none=True)
            self._backward(batch.images[rows], batch.labels[rows], loss_of)
            self._optimizer.step()
        self._check(step)
        if self._average is not None:
            self._average.update(self.module)
        return {f"{self.name}/learning_rate": rate}

    def _noise(self, step: int) -> torch.Generator:
        """The generator of the noise of a step, on the device."""
        noise = self.entropy("noise")(step)
        if self._device.type == "cpu":
            return noise
        return torch.Generator(self._device).manual_seed(noise.initial_seed())

    def _backward(self, images: Tensor, labels: Tensor, loss_of: LossOf) -> None:
        if not len(labels):
            # An empty sum of gradients. Opacus runs no empty batch through layers that it has no formula for.
            for parameter in self._parameters:
                parameter.grad_sample = parameter.new_zeros(0, *parameter.shape)  # type: ignore[attr-defined]
            return
        logits = self.model(images).float()
        require_one_row_each(self.module, len(images))
        with warnings.catch_warnings():  # images need no gradient, which Opacus' hooks warn about
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            loss_of(logits, labels).backward()
        require_gradients(self.module)

    def _check(self, step: int) -> None:
        """Raise `TrainingError` for weights that are not finite, and for buffers that have changed."""
        if not all(bool(torch.isfinite(p).all()) for p in self.module.parameters()):
            raise TrainingError(
                f"{self.name}: the weights are not finite after step {step}; lower training.optimizer.lr"
            )
        for name, value in self.module.named_buffers():
            if not torch.equal(value, self._buffers[name]):
                raise TrainingError(
                    f"{self.name}: buffer {name} changed in training, which no noise covers; use a model without it"
                )

    def finished(self) -> nn.Module:
        """The trained module, without the hooks and the per-example gradients of Opacus."""
        self.model.remove_hooks()  # type: ignore[operator]
        for parameter in self.module.parameters():
            for attribute in ("grad_sample", "summed_grad"):
                if hasattr(parameter, attribute):
                    delattr(parameter, attribute)
            parameter.grad = None
        return self.evaluated

    def state_dict(self) -> dict[str, Any]:
        """States of module, optimiser and weight average, and the number of steps in the journal."""
        return {
            "module": dict(self.module.state_dict()),
            "optimizer": self._optimizer.original_optimizer.state_dict(),
            "average": {} if self._average is None else self._average.state_dict(),
            "steps": self._journal.steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of `state_dict`.

        Raises:
            CheckpointError: the state does not say how many steps were taken, or the journal has fewer.
        """
        if "steps" not in state:
            raise CheckpointError(f"{self.name}: the checkpoint does not say how many private steps were taken")
        self._journal.require(steps=int(state["steps"]))
        self.module.load_state_dict(state["module"])
        self._optimizer.original_optimizer.load_state_dict(state["optimizer"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])


def statement(mechanism: Mechanism, ledger: Ledger, spent: Epsilon) -> dict[str, object]:
    """The claim of a finished run, for result.json and the model's own notes; see `dp_statement`."""
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
