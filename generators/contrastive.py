"""A data-free generator that starts anew for every batch and whose images must differ from all earlier ones (CMI).

Contrastive model inversion (Fang et al. 2021): a network and its latent vectors are optimised for one batch. Beside the
losses of inversion there is a contrastive one: of two views of each image, the teacher's features must be more alike
than those of this image and any other, of this batch or of earlier ones. Features are the channel means at the inputs
of the BatchNorm layers; a small head that is trained throughout the run maps them to where they are compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from synthkd.data.augment import flip
from synthkd.errors import ModelError
from synthkd.generators.batchwise import Attempt, Canvas, Pooled
from synthkd.generators.inversion_network import latent_network
from synthkd.generators.method_settings import ContrastiveSettings
from synthkd.generators.teacher_student import STUDENT_TERMS
from synthkd.generators.views import cropped
from synthkd.losses.contrast import instance_contrast
from synthkd.models.weights import finite_state
from synthkd.processes import ONE_PROCESS
from synthkd.rng import Rows, derive, stream
from synthkd.taps import evaluating, has_statistics, observe
from synthkd.types import ImageSpec, Round

REMEMBERED = 8
"""Earlier batches whose features are kept, as a multiple of the images that a batch is compared with: 10 in the
authors' code."""
NO_FEATURES = (
    "the contrastive generator compares features at BatchNorm layers, which the teacher lacks; set the generator's "
    "kind to pixels"
)


class ChannelMeans:
    """Context manager in which every pass of a network leaves the channel means at its BatchNorm layers' inputs.

    Layers that an evaluation passes over, as those of auxiliary heads, are left out.

    Args:
        network: with layers that `has_statistics`.
        images: some that it takes.
    """

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        with torch.no_grad(), evaluating(network):
            run = observe(network, images, statistics=True).statistics
        self._layers = [module for path, module in network.named_modules() if path in run]
        self._means: dict[int, Tensor] = {}
        self._hooks = ExitStack()

    @property
    def size(self) -> int:
        """Channels of all layers together."""
        return sum(int(getattr(layer, "running_mean").numel()) for layer in self._layers)  # noqa: B009

    def __enter__(self) -> ChannelMeans:
        for number, layer in enumerate(self._layers):
            handle = layer.register_forward_pre_hook(partial(self._record, number))
            self._hooks.callback(handle.remove)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._hooks.close()

    def _record(self, number: int, _: nn.Module, args: tuple[Any, ...]) -> None:
        self._means[number] = args[0].float().flatten(2).mean(2) if args[0].ndim > 2 else args[0].float()

    @property
    def newest(self) -> Tensor:
        """Those of the last pass, float32 `[N, size]`, with gradient."""
        return torch.cat([self._means[number] for number in range(len(self._layers))], dim=1)


class Contrastive(Pooled):
    """The contrastive inversion of one teacher.

    Args:
        settings: sizes, rates and weights.
        teacher: the frozen teacher, only read.
        seed: the run's seed.
        accelerator: device and precision; None: the teacher's device, full precision.
        spec: images and classes of a teacher that is no `Classifier`.

    Raises:
        ModelError: the teacher has no BatchNorm layer, or its images and classes are unknown.
    """

    folds = False  # the features are those at BatchNorm layers

    def __init__(
        self,
        settings: ContrastiveSettings,
        teacher: nn.Module,
        seed: int = 0,
        accelerator: Accelerator | None = None,
        spec: ImageSpec | None = None,
    ) -> None:
        # Here, since the remedy of the base class, a batch_norm of 0, would not help.
        if not any(has_statistics(module) for module in teacher.modules()):
            raise ModelError(NO_FEATURES)
        adversarial = {"adversarial": STUDENT_TERMS["adversarial"]}
        super().__init__(settings, teacher, seed, accelerator, spec, adversarial, {"contrast": self._contrast})
        self.settings = settings
        # A pass that processes share would leave the means of some rows alone.
        self._processes = ONE_PROCESS
        self._means = ChannelMeans(self._teacher, torch.zeros(1, *self.spec.shape, device=self._device))
        size = self._means.size
        if not size:  # none but layers that an evaluation passes over
            raise ModelError(NO_FEATURES)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "generator/head"))
            head = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, settings.dimension))
        self._head = head.to(self._device)
        self._head_optimizer = torch.optim.Adam(self._head.parameters(), settings.lr)
        self._bank = torch.empty(0, 2, size)
        self._features = torch.empty(0, 2, size)
        self._earlier = self._bank

    def _begin(self, index: int, labels: Tensor) -> Canvas:
        s, count = self.settings, len(labels)
        network = latent_network(self.spec, s.latent, s.width, self._seed, self._device, index).train()
        latent = Rows(self._seed, "latent", index * count).normal(count, s.latent).to(self._device).requires_grad_()
        # One draw a round, where the authors draw at every step.
        rows = torch.randperm(len(self._bank), generator=stream(self._seed, "negatives", index))[: s.negatives]
        self._earlier = self._bank[rows].to(self._device)
        return Canvas([*network.parameters(), latent], lambda: network(latent), self._settle)

    def round(self, index: int, difficulty: float, student: nn.Module | None = None) -> Round:
        """As that of the base class; the head is trained along."""
        with self._means:
            return super().round(index, difficulty, student)

    def _contrast(self, attempt: Attempt) -> Tensor:
        # The pass that gave the outputs has left the means of the first view.
        first = self._means.newest
        second_view = flip(
            cropped(attempt.images, self.settings.crop, attempt.rng), attempt.rng, 0.5 * self.settings.flip
        )
        with self._autocast():
            self._teacher(second_view)
        second = self._means.newest
        self._features = torch.stack([second, first], dim=1).detach()
        views, anchors = (
            self._head(torch.cat([new, self._earlier[:, place]])) for place, new in enumerate((second, first))
        )
        return instance_contrast(views, anchors, len(first), self.settings.temperature)

    def _settle(self) -> None:
        self._head_optimizer.step()
        self._head_optimizer.zero_grad(set_to_none=True)

    def _note(self) -> object:
        return self._features

    def _end(self, note: object) -> None:
        assert isinstance(note, Tensor)
        self._bank = torch.cat([self._bank, note.cpu()])[-REMEMBERED * self.settings.negatives :]

    def state_dict(self) -> dict[str, Any]:
        """The head with its optimiser, features of earlier images, and the images of earlier rounds."""
        return super().state_dict() | {
            "head": finite_state(self._head, "generator: its head"),
            "optimizer": self._head_optimizer.state_dict(),
            "bank": self._bank.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state)
        self._head.load_state_dict(state["head"])
        self._head_optimizer.load_state_dict(state["optimizer"])
        self._bank = state["bank"].clone()
