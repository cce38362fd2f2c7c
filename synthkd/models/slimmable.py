"""A student whose width changes while it trains: slimmable layers, a trained width coefficient, a penalty on width.

A network of the zoo is built at its largest width, and a forward pass uses the first channels of every layer (Yu et al.
2019, "Slimmable Neural Networks"). At each width it is an ordinary zoo network, which `slice_out` returns. The width in
use is `int(base * c)`, with a coefficient c in [1, most] that the student's optimiser trains.

The usual recipe has channels = int(base * clamp(c, 1, most)) inside the layer, a penalty gamma |c - 1|, and a demand
`lambda_t = sigmoid(alpha * G_t + beta * S_t)` from gradient magnitude and feature similarity. Three of its parts do not
work and are different here:

- `int` has no gradient. In training a fair coin adds the next unit of channels to a pass or leaves it out, and c gets
  the gradient of that unit's gate, straight through (Bengio et al. 2013): `dL/dc = base * dL/dgate`. Averaged over the
  coin this is the trapezoid rule for the value of the unit, `L(with) - L(without)`. A gate that is always 1 would not
  do: in a trained network the gradient by any scale tends to 0, and the penalty would always win.
- A clamp has no gradient beyond its bounds, so a coefficient there would stay there. `update` moves it back to the
  bound instead.
- The demand is always above one half, depends on the scale of the loss, and grows as the student gets better. Here it
  is `sigmoid(alpha * log(G_t / G) + beta * (s - S_t))`: the gradient relative to its own long average G, and how far
  the similarity is below its target s. It reduces the penalty to `gamma * (1 - lambda_t) * |c - 1|`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from synthkd.errors import ConfigError, DataError
from synthkd.models import zoo
from synthkd.models.classifier import Classifier
from synthkd.settings import WidthSettings, ZooModel
from synthkd.types import ImageSpec

SLIMMABLE = ("convnet", "resnet")
"""Architectures in which every hidden layer has a whole number of channels for each unit of width."""

_ROUNDING = 1e-4  # added to a width: base times a float32 coefficient may lie just below a whole number


class Slimmable(nn.Module):
    """A convnet or resnet of the zoo whose width changes in training; `slice_out` makes a Classifier of it.

    The state dict has the weights of all widths, the coefficient and the moving averages, so a checkpoint restores the
    width, too. All widths share the running statistics of BatchNorm.

    Args:
        settings: largest width, penalty and demand.
        student: the network at its base width.
        spec: shape of its images and number of its classes.
        mean, std, class_names: see `Classifier`.

    Attributes:
        network: the zoo's Classifier at its largest width; its features are tapped as "network.body.stage1".
        coefficient: c, a float32 scalar parameter.
        signals: float32 `[5]`: number of updates, short and long average of the gradient, average of the similarity,
            demand.
        base: width at c = 1.

    Raises:
        ConfigError: another architecture, or GroupNorm, whose groups would change with the width.
    """

    signals: Tensor

    def __init__(
        self,
        settings: WidthSettings,
        student: ZooModel,
        spec: ImageSpec,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        class_names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if student.arch not in SLIMMABLE or (student.norm, student.activation) != ("batch", "relu"):
            raise ConfigError(
                f"a changing width needs arch {' or '.join(SLIMMABLE)} with norm batch and activation relu, got "
                f"{student.arch} with norm {student.norm} and activation {student.activation}; take one of those, or "
                "choose the width by a search"
            )
        # Built on the meta device, without memory, only to learn the default width.
        with torch.device("meta"):
            self.base = int(zoo.build(student, spec).recipe["width"])
        self.settings = settings
        self.student = student
        self.spec = spec
        self.network = zoo.build(self._at(int(self.base * settings.most + _ROUNDING)), spec, mean, std, class_names)
        self.coefficient = nn.Parameter(torch.tensor(float(settings.start)))
        self.register_buffer("signals", torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0]))
        self._shapes: dict[int, dict[str, torch.Size]] = {}

    @property
    def width(self) -> int:
        """The width in use, `int(base * c)`, at most the largest."""
        return min(int(self.base * float(self.coefficient.detach()) + _ROUNDING), self.largest)

    @property
    def largest(self) -> int:
        """The largest width."""
        return int(self.network.recipe["width"])

    @property
    def demand(self) -> float:
        """lambda_t in (0, 1), from the last `update`; 1 before the first."""
        return float(self.signals[4])

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, K]` at the width in use; in training half of the passes include the next unit of channels.

        The coin is drawn from torch's global generator. At the largest width it decides about the last unit.
        """
        if not self.training or self.largest == self.base:
            return self.logits(images, self.width)
        coin = float(torch.rand(()) < 0.5)
        # Straight through: the value of the gate is the coin's, its gradient by c is `base`, as of the width base * c.
        gate = coin + self.base * (self.coefficient - self.coefficient.detach())
        return self.logits(images, min(self.width + 1, self.largest), gate)

    def logits(self, images: Tensor, width: int, gate: Tensor | None = None) -> Tensor:
        """Logits `[N, K]` at a width.

        Args:
            images: float `[N, C, H, W]` in `[0, 1]`.
            width: between 1 and the largest.
            gate: scalar factor on the activations of the last unit in every layer; None: 1.
        """

        def gated(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:  # noqa: ARG001
            unit = output.shape[1] // width
            return output if gate is None else torch.cat([output[:, :-unit], output[:, -unit:] * gate], dim=1)

        points = [m for m in self.network.modules() if isinstance(m, nn.ReLU | nn.MaxPool2d)]
        with ExitStack() as hooks:
            for point, after in zip_longest(points, points[1:]):
                # After a pooling and not before it: a gate of 0 makes all values equal, so the pooling would send its
                # gradient to any of them.
                if not isinstance(after, nn.MaxPool2d):
                    hooks.callback(point.register_forward_hook(gated).remove)
            logits: Tensor = functional_call(self.network, self.tensors(width), (images,))
        return logits

    def tensors(self, width: int) -> dict[str, Tensor]:
        """Name -> parameters and saved buffers of the network at a width: views of the first channels.

        Raises:
            ConfigError: a width below 1 or above the largest.
        """
        if not 1 <= width <= self.largest:
            raise ConfigError(f"width must be between 1 and {self.largest}, got {width}")
        # The shapes are those of a zoo network of this width, so `slice_out` fits; they are stored, since widths recur.
        if width not in self._shapes:
            with torch.device("meta"):
                sliced = zoo.build(self._at(width), self.spec).state_dict()
            self._shapes[width] = {name: value.shape for name, value in sliced.items()}
        every = {**dict(self.network.named_parameters()), **dict(self.network.named_buffers())}
        return {name: every[name][tuple(map(slice, shape))] for name, shape in self._shapes[width].items()}

    def penalty(self) -> Tensor:
        """`gamma * (1 - lambda_t) * |c - 1|`, a scalar to add to the loss."""
        return self.settings.gamma * (1.0 - self.demand) * (self.coefficient - 1.0).abs()

    @torch.no_grad()
    def update(self, gradient: float, similarity: float) -> dict[str, float]:
        """After a step of the optimiser: move the coefficient into its bounds and update the demand for width.

        Args:
            gradient: norm of the student's gradient at this step, >= 0.
            similarity: of student and teacher on this batch, in [0, 1], such as their agreement.

        Returns:
            Name -> value for the log: coefficient, width and demand.

        Raises:
            DataError: a gradient or similarity outside its range.
        """
        if not 0.0 <= gradient < math.inf or not 0.0 <= similarity <= 1.0:
            raise DataError(
                f"update needs a gradient norm >= 0 and a similarity in [0, 1], got {gradient} and {similarity}"
            )
        s = self.settings
        self.coefficient.clamp_(1.0, s.most)
        count, short, long, similar, _ = self.signals.tolist()
        # The first values replace the initial zeros. The long average is ten times as slow, so their ratio shows a
        # rise or fall of the gradient, whatever the scale of the loss.
        keep, keep_long = (0.0, 0.0) if count == 0 else (s.decay, 1.0 - (1.0 - s.decay) / 10.0)
        short = keep * short + (1.0 - keep) * gradient
        long = keep_long * long + (1.0 - keep_long) * gradient
        similar = keep * similar + (1.0 - keep) * similarity
        rise = math.log(short / long) if short > 0.0 else 0.0
        wish = torch.tensor(s.alpha * rise + s.beta * (s.similarity - similar))
        self.signals.copy_(torch.tensor([count + 1.0, short, long, similar, float(wish.sigmoid())]))
        return {
            "width/coefficient": float(self.coefficient.detach()),
            "width/width": self.width,
            "width/demand": self.demand,
        }

    def _at(self, width: int) -> ZooModel:
        return self.student.model_copy(update={"width": width})


def slice_out(model: Slimmable) -> Classifier:
    """An ordinary zoo Classifier of the width in use, in eval mode, with copies of the weights.

    Args:
        model: in any mode, on any device; unchanged. The logits equal its logits in eval mode.
    """
    network = model.network
    mean, std = (b.flatten().tolist() for b in (network.normalize.mean, network.normalize.std))
    # The initial weights are replaced at once, so they must not move the global random state.
    with torch.random.fork_rng(devices=[]):
        sliced = zoo.build(model._at(model.width), model.spec, mean, std, network.class_names)
    sliced.load_state_dict(model.tensors(model.width))
    return sliced.to(network.normalize.mean.device).eval()
