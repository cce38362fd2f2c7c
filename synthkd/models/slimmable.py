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

A vit of the zoo cannot be slimmed: its number of heads changes with its width, and LayerNorm mixes all channels of a
token, so the first channels alone are no smaller vit. Nor can GroupNorm, whose groups change. A network from elsewhere
has no widths to build it at, and what its forward method does between its layers cannot be read from the layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor, nn
from torch.func import functional_call

from synthkd.errors import ConfigError, DataError
from synthkd.models import zoo
from synthkd.models.classifier import Classifier
from synthkd.settings import WidthSettings, ZooModel
from synthkd.types import ImageSpec

SLIMMABLE = ("mlp", "lenet5", "convnet", "resnet", "wide_resnet", "slim")
"""Architectures in which the first channels of every layer are the same network at a smaller width."""

DECAY = 0.9
"""Decay of the short moving averages, over about 10 steps: a single batch says little about gradient and similarity."""
LONG_DECAY = 1.0 - (1.0 - DECAY) / 10.0
"""Decay of the long average of the gradient, ten times as slow: it is what the short one is compared with."""

_ROUNDING = 1e-4  # added to a width: base times a float32 coefficient may lie just below a whole number


@dataclass(frozen=True)
class _Sizes:
    """The zoo's network at one width.

    Attributes:
        shapes: name -> shape of its parameters and saved buffers.
        channels: for each point of `_points`, the channels of its output.
    """

    shapes: dict[str, torch.Size]
    channels: tuple[int, ...]


class Slimmable(nn.Module):
    """A network of the zoo, but no vit, whose width changes in training; `slice_out` makes a Classifier of it.

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
        ConfigError: a vit, GroupNorm, or a wide_resnet from width 1 on, which alone has no first shortcut.
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
        if student.arch not in SLIMMABLE or student.norm != "batch":
            raise ConfigError(
                f"a changing width needs arch {' or '.join(SLIMMABLE)} with norm batch, got {student.arch} with norm "
                f"{student.norm}; take one of those, or choose the width by a search"
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
        self._sizes: dict[int, _Sizes] = {}
        self.tensors(self.base)  # so that a base width with other layers is refused now
        for layer in self.network.modules():
            if isinstance(layer, nn.Conv2d) and layer.groups > 1:
                layer.register_forward_pre_hook(_depthwise)

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
        # Without a range of widths there is nothing to decide.
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
            gate: scalar factor on the activations of the last unit in every layer, for a width of at least 2; None: 1.
        """
        tensors = self.tensors(width)
        with ExitStack() as hooks:
            if gate is not None:
                for point, narrower in zip(_points(self.network), self._sizes_at(width - 1).channels, strict=True):
                    hooks.callback(point.register_forward_hook(_gated(gate, narrower)).remove)
            logits: Tensor = functional_call(self.network, tensors, (images,))
        return logits

    def tensors(self, width: int) -> dict[str, Tensor]:
        """Name -> parameters and saved buffers of the network at a width: views of the first channels.

        Raises:
            ConfigError: a width below 1 or above the largest, or one at which the network has other layers.
        """
        if not 1 <= width <= self.largest:
            raise ConfigError(f"width must be between 1 and {self.largest}, got {width}")
        shapes = self._sizes_at(width).shapes
        if shapes.keys() != self._sizes_at(self.largest).shapes.keys():
            raise ConfigError(
                f"a {self.student.arch} of width {width} has other layers than one of width {self.largest}; set a "
                f"student.width above {width}"
            )
        # Views and not copies, so that gradients and running statistics reach the network itself.
        every = {**dict(self.network.named_parameters()), **dict(self.network.named_buffers())}
        return {name: every[name][tuple(map(slice, shape))] for name, shape in shapes.items()}

    def penalty(self) -> Tensor:
        """`gamma * (1 - lambda_t) * |c - 1|`, a scalar to add to the loss."""
        return self.settings.gamma * (1.0 - self.demand) * (self.coefficient - 1.0).abs()

    @torch.no_grad()
    def update(self, gradient: float, similarity: float) -> dict[str, float]:
        """After a step of the optimiser: move the coefficient into its bounds and update the demand for width.

        Args:
            gradient: norm of the student's gradient at this step, >= 0.
            similarity: S_t of student and teacher on this batch, in [0, 1]: their agreement, or `losses.linear_cka` of
                their features.

        Returns:
            Name -> value for the log: coefficient, width, demand and the average of the similarity.

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
        keep, keep_long = (0.0, 0.0) if count == 0 else (DECAY, LONG_DECAY)
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
            "width/similarity": similar,
        }

    def _at(self, width: int) -> ZooModel:
        return self.student.model_copy(update={"width": width})

    def _sizes_at(self, width: int) -> _Sizes:
        # Of the zoo's own network of this width, so `slice_out` fits; they are stored, since widths recur.
        if width not in self._sizes:
            with torch.device("meta"):
                narrow = zoo.build(self._at(width), self.spec).eval()
                places = {point: number for number, point in enumerate(_points(narrow))}
                channels = [0] * len(places)

                def note(point: nn.Module, _: object, output: Tensor) -> None:
                    channels[places[point]] = output.shape[1]

                for point in places:
                    point.register_forward_hook(note)
                narrow(torch.empty(1, *self.spec.shape))
            shapes = {name: value.shape for name, value in narrow.state_dict().items()}
            self._sizes[width] = _Sizes(shapes, tuple(channels))
        return self._sizes[width]


def _points(network: nn.Module) -> list[nn.Module]:
    """Where the channels of a unit leave a layer: activations, or the max pooling that follows one."""
    points = [m for m in network.modules() if isinstance(m, nn.ReLU | nn.Tanh | nn.MaxPool2d)]
    # After a pooling and not before it: a gate of 0 makes all values equal, so the pooling would send its gradient to
    # any of them.
    return [point for point, after in zip_longest(points, points[1:]) if not isinstance(after, nn.MaxPool2d)]


def _gated(gate: Tensor, narrower: int) -> Callable[[nn.Module, object, Tensor], Tensor]:
    """A forward hook that multiplies all channels after the first `narrower` by the gate."""

    def hook(_: nn.Module, __: object, output: Tensor) -> Tensor:
        # Some layers have the same size at both widths, such as the stem of a wide_resnet.
        if output.shape[1] == narrower:
            return output
        return torch.cat([output[:, :narrower], output[:, narrower:] * gate], dim=1)

    return hook


def _depthwise(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
    # One group for each channel of this pass: `groups` is an attribute of the layer, which slicing its weight leaves.
    assert isinstance(layer, nn.Conv2d)
    layer.groups = args[0].shape[1]


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
