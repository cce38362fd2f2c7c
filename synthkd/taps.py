"""Record a network's inner values during a forward pass, and set the mode of modules for a while.

`observe` is for one pass, `Taps` for a loop. Hooks exist only inside the context manager. Train or eval mode and
requires_grad stay as they are, so the values are those of the network's present mode.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from synthkd.errors import ModelError
from synthkd.types import BatchNormStatistics, Outputs

INPUT = ":input"
"""Suffix of a module path that taps the module's input instead of its output."""


class BatchNormLike(Protocol):
    """A layer with stored moments of its input per channel, which is dimension 1.

    BatchNorm, SyncBatchNorm and timm's BatchNormAct are such layers, and FrozenBatchNorm2d of torchvision and others,
    which is no subclass of PyTorch's.

    Attributes:
        training: whether it is in training mode.
        running_mean, running_var: float `[C]`.
    """

    training: bool
    running_mean: Tensor
    running_var: Tensor


@dataclass(frozen=True)
class _Pass:
    """Values of one forward pass, as recorded by the hooks.

    Attributes:
        features: module path, with `INPUT` or without -> its value.
        versions: the same keys -> version of the value at that time, see `_version`.
        statistics: path of a BatchNorm layer -> moments of its input.
    """

    features: dict[str, Tensor] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    statistics: dict[str, BatchNormStatistics] = field(default_factory=dict)


class Taps:
    """Context manager in which `taps(images)` is a forward pass of `model` that also returns inner values.

    Args:
        model: any module that maps images to a tensor of logits.
        features: module paths whose output to record; `PATH:input` records the module's first input instead. A module
            that runs several times in a pass gives the value of its last run.
        statistics: also compute the moments of the input of every BatchNorm layer that has running statistics, over
            batch and positions, with gradient.

    Raises:
        ModelError: on construction, a path that the model does not have; in the pass, a tapped value that is not a
            tensor, was never computed, or was overwritten in place by a later layer.

    Example:
        with Taps(teacher, features=["body.stage2"], statistics=True) as taps:
            for images in batches:
                out = taps(images)
    """

    def __init__(self, model: nn.Module, features: Sequence[str] = (), statistics: bool = False) -> None:
        self._model = model
        modules = dict(model.named_modules())
        self._points = {name: _module_at(modules, name) for name in features}
        self._norms = {path: m for path, m in modules.items() if statistics and has_statistics(m)}
        self._hooks = ExitStack()
        self._pass: _Pass | None = None  # None outside a call of the taps

    def __enter__(self) -> Taps:
        for name, module in self._points.items():
            if name.endswith(INPUT):
                self._add(module.register_forward_pre_hook(partial(self._record_input, name)))
            else:
                self._add(module.register_forward_hook(partial(self._record_output, name)))
        for path, norm in self._norms.items():
            self._add(norm.register_forward_pre_hook(partial(self._record_moments, path)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._hooks.close()

    def __call__(self, images: Tensor) -> Outputs:
        """One forward pass, with gradient if gradients are enabled around it.

        Args:
            images: float32 `[N, C, H, W]`, or whatever the model takes.

        Returns:
            Logits, features in the order of the paths, and statistics. The taps keep no reference to them, so that
            memory is freed as after an ordinary pass.
        """
        self._pass = current = _Pass()
        try:
            logits = self._model(images)
            self._check(current)
        finally:
            self._pass = None  # also after an error, so that nothing of this pass shows in the next
        return Outputs(logits, {name: current.features[name] for name in self._points}, current.statistics)

    def _add(self, hook: torch.utils.hooks.RemovableHandle) -> None:
        self._hooks.callback(hook.remove)

    def _record_input(self, name: str, _: nn.Module, args: tuple[Any, ...]) -> None:
        self._record(name, args[0] if args else None)

    def _record_output(self, name: str, _: nn.Module, args: tuple[Any, ...], output: object) -> None:
        self._record(name, output)

    def _record_moments(self, path: str, norm: nn.Module, args: tuple[Any, ...]) -> None:
        if self._pass is not None:
            self._pass.statistics[path] = moments(norm, args[0])

    def _record(self, name: str, value: object) -> None:
        # The model may also be run on its own inside the context; such passes are not recorded.
        if self._pass is None:
            return
        if not isinstance(value, Tensor):
            raise ModelError(f"'{name}' gives a {type(value).__name__}, not a tensor; tap a module inside or after it")
        self._pass.features[name] = value
        self._pass.versions[name] = _version(value)

    def _check(self, current: _Pass) -> None:
        for name in self._points:
            if name not in current.features:
                raise ModelError(f"'{name}' did not run in this forward pass; tap a module that does")
            # Else an in-place ReLU after a tapped layer would silently replace the output of the layer by its own.
            if _version(current.features[name]) != current.versions[name]:
                raise ModelError(
                    f"'{name}' was overwritten in place by a later layer; tap that layer instead, or build it with "
                    "inplace=False"
                )


def observe(model: nn.Module, images: Tensor, features: Sequence[str] = (), statistics: bool = False) -> Outputs:
    """One forward pass of `images` that also returns inner values; arguments and errors are those of `Taps`."""
    with Taps(model, features, statistics) as taps:
        return taps(images)


def has_statistics(module: nn.Module) -> bool:
    """Whether a module is a BatchNorm layer that keeps running statistics, whatever its class."""
    if isinstance(module, nn.modules.instancenorm._InstanceNorm):  # its moments are those of single images
        return False
    if isinstance(module, torch.jit.ScriptModule):  # a program without hooks, so its moments cannot be seen
        return False
    mean, var = (getattr(module, name, None) for name in ("running_mean", "running_var"))
    return isinstance(mean, Tensor) and isinstance(var, Tensor) and mean.dim() == 1 and mean.shape == var.shape


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Context manager that puts modules into eval mode; afterwards every submodule has its earlier mode."""
    # Of every submodule, because some may be in eval mode on purpose (frozen BatchNorm).
    before = [(m, m.training) for module in modules for m in module.modules()]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for m, training in before:
            m.training = training


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Context manager in which the parameters of modules get no gradient; afterwards requires_grad is as before.

    Gradients still flow through the modules to their inputs.
    """
    before = [(p, p.requires_grad) for module in modules for p in module.parameters()]
    try:
        for p, _ in before:
            p.requires_grad_(False)
        yield
    finally:
        for p, requires_grad in before:
            p.requires_grad_(requires_grad)


class FoldedNorm(nn.Module):
    """Stands where a BatchNorm was that is folded into the layer before it, and knows the moments that came into it.

    Its input x' is what the BatchNorm gave: `x' = scale (x - running_mean) + bias`. So the moments of x follow from
    those of x', and matching them costs no second normalisation.

    Args:
        norm: the BatchNorm.
        rest: what is left to do after it.
    """

    running_mean: Tensor
    running_var: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, norm: nn.Module, rest: nn.Module) -> None:
        super().__init__()
        mean, var, scale, bias = affine(norm)
        for name, value in (("running_mean", mean), ("running_var", var), ("scale", scale), ("bias", bias)):
            self.register_buffer(name, value.detach().clone())
        self.rest = rest

    def forward(self, x: Tensor) -> Tensor:
        """What the BatchNorm and its activation would give; x is normalised already."""
        y: Tensor = self.rest(x)
        return y

    def of_input(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Moments `[C]` of what came into the BatchNorm, of the moments of what it gave."""
        return (mean - self.bias) / self.scale + self.running_mean, var / self.scale.square()


def affine(norm: nn.Module) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of a layer that `has_statistics`: its running mean and variance, and scale and bias of its map, `[C]` each.

    In eval mode the layer computes `scale (x - running_mean) + bias`.
    """
    layer = cast(Any, norm)
    mean, scale = layer.running_mean, torch.rsqrt(layer.running_var + layer.eps)
    scale = scale if layer.weight is None else layer.weight * scale
    return mean, layer.running_var, scale, torch.zeros_like(mean) if layer.bias is None else layer.bias


def mean_and_variance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance `[C]` over all dimensions of x but the second.

    In two passes: mean square minus squared mean would lose the variance to rounding in float32. `torch.var_mean` takes
    about 20 times as long for channels-last maps on a CPU.
    """
    over = [d for d in range(x.dim()) if d != 1]
    mean = x.mean(over, keepdim=True)
    return mean.flatten(), (x - mean).square_().mean(over)


class _Moments(torch.autograd.Function):
    """Mean and biased variance over all dimensions except the second, in two passes like `torch.var_mean`.

    The gradient in closed form takes one pass over x, that of `var_mean` takes several. On a CPU the moments are a
    large part of the cost of matching them.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = mean_and_variance(x)
        ctx.save_for_backward(x, mean.view([1, -1] + [1] * (x.dim() - 2)))
        return mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_mean: Tensor, of_var: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        count = x.numel() // x.shape[1]
        # d mean / d x = 1 / count and d var / d x = 2 (x - mean) / count, gathered into one multiply-add over x
        slope = (of_var * (2.0 / count)).view_as(mean)
        return torch.addcmul((of_mean / count).view_as(mean) - slope * mean, x, slope)


def moments(module: nn.Module, x: Tensor) -> BatchNormStatistics:
    """Moments of the input of a layer that `has_statistics`, over all dimensions but the second, with gradient.

    Args:
        module: the layer.
        x: its input, `[N, C]`, `[N, C, L]` or `[N, C, H, W]`.
    """
    norm = cast(BatchNormLike, module)
    # Under autocast x may be of half precision, in which large sums overflow.
    mean, var = _Moments.apply(x.to(torch.promote_types(x.dtype, torch.float32)))
    if isinstance(module, FoldedNorm):
        mean, var = module.of_input(mean, var)
    # In training mode the layer is about to change its buffers in place, so they have to be copied.
    copy = torch.clone if norm.training else torch.detach
    return BatchNormStatistics(mean, var, copy(norm.running_mean), copy(norm.running_var))


def _version(value: Tensor) -> int:
    """Number of changes in place so far; 0 for inference tensors, which do not count them."""
    return 0 if value.is_inference() else value._version


def _module_at(modules: dict[str, nn.Module], name: str) -> nn.Module:
    path = name.removesuffix(INPUT)
    if path not in modules:
        names = [n for n in modules if n]
        close = difflib.get_close_matches(path, names, n=3, cutoff=0.5) or names[:8]
        raise ModelError(f"the model has no module '{path}'; the closest are: {', '.join(close)}")
    return modules[path]
