"""Look inside a network during a forward pass, and put modules into a state for a while.

`observe` is for one pass, `Taps` for a loop. Hooks exist only inside the context manager; train/eval mode and
requires_grad are left alone, so what is observed is what the network does in the mode it is in.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from synthkd.errors import ModelError
from synthkd.types import BatchNormStatistics, Outputs

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
INPUT = ":input"


class Taps:
    """Context manager in which `taps(images)` is a forward pass of `model` that shows its inside.

    Args:
        model: any module that maps images to a tensor of logits.
        features: module paths whose output to keep; `PATH:input` keeps the module's first input instead. A module that
            runs several times in a pass shows its last run.
        statistics: also take the moments of the input of every BatchNorm layer that has running statistics, over
            batch and positions, with gradient.

    Raises:
        ModelError: a path that the model does not have (on construction); a tapped value that is not a tensor, was
            never computed, or was overwritten in place by a later layer (on the pass).

    Example:
        with Taps(teacher, features=["body.stage2"], statistics=True) as taps:
            for images in batches:
                out = taps(images)
    """

    def __init__(self, model: nn.Module, features: Sequence[str] = (), statistics: bool = False) -> None:
        self._model = model
        modules = dict(model.named_modules())
        self._points = {name: _find(modules, name) for name in features}
        self._norms = {path: m for path, m in modules.items() if statistics and has_statistics(m)}
        self._hooks = ExitStack()
        self._features: dict[str, Tensor] | None = None
        self._versions: dict[str, int] = {}
        self._statistics: dict[str, BatchNormStatistics] = {}

    def __enter__(self) -> Taps:
        for name, module in self._points.items():
            if name.endswith(INPUT):
                self._keep(module.register_forward_pre_hook(self._input_hook(name)))
            else:
                self._keep(module.register_forward_hook(self._output_hook(name)))
        for path, norm in self._norms.items():
            self._keep(norm.register_forward_pre_hook(self._statistics_hook(path)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._hooks.close()

    def __call__(self, images: Tensor) -> Outputs:
        """One forward pass, with gradient if the surroundings have it. Nothing of it is kept here afterwards."""
        features: dict[str, Tensor] = {}
        self._versions = {}
        statistics: dict[str, BatchNormStatistics] = {}
        self._features, self._statistics = features, statistics
        try:
            logits = self._model(images)
            self._check()
        finally:
            self._features, self._versions, self._statistics = None, {}, {}
        return Outputs(logits=logits, features={name: features[name] for name in self._points}, statistics=statistics)

    def _keep(self, hook: torch.utils.hooks.RemovableHandle) -> None:
        self._hooks.callback(hook.remove)

    def _record(self, name: str, value: object) -> None:
        # None outside a call of these taps: the model may also be run on its own inside the context.
        if self._features is None:
            return
        if not isinstance(value, Tensor):
            raise ModelError(f"'{name}' gives a {type(value).__name__}, not a tensor; tap a module inside or after it")
        self._features[name] = value
        self._versions[name] = _version(value)

    def _input_hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            self._record(name, args[0] if args else None)

        return hook

    def _output_hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001
            self._record(name, output)

        return hook

    def _statistics_hook(self, path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(norm: nn.Module, args: tuple[Any, ...]) -> None:
            if self._features is not None:
                self._statistics[path] = _moments(norm, args[0])

        return hook

    def _check(self) -> None:
        assert self._features is not None
        for name in self._points:
            if name not in self._features:
                raise ModelError(f"'{name}' did not run in this forward pass; tap a module that does")
            if _version(self._features[name]) != self._versions[name]:
                raise ModelError(
                    f"'{name}' was overwritten in place by a later layer; tap that layer instead, or build it with "
                    "inplace=False"
                )


def observe(model: nn.Module, images: Tensor, features: Sequence[str] = (), statistics: bool = False) -> Outputs:
    """One forward pass of `images` with a look inside; see `Taps` for the arguments and errors."""
    with Taps(model, features, statistics) as taps:
        return taps(images)


def has_statistics(module: nn.Module) -> bool:
    """Whether a module is a BatchNorm layer that keeps running statistics."""
    return isinstance(module, BATCH_NORMS) and module.running_mean is not None


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Put modules into eval mode; afterwards every submodule has the mode it had."""
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
    """Take the parameters of modules out of the gradient; afterwards each has the requires_grad it had.

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


class _Moments(torch.autograd.Function):
    """Mean and biased variance over all dimensions but the second, in two passes as `torch.var_mean` takes them.

    The gradient in closed form is one pass over x; differentiating `var_mean` costs several, and on a CPU the moments
    are a large part of what matching them costs.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> tuple[Tensor, Tensor]:
        over = [d for d in range(x.dim()) if d != 1]
        mean = x.mean(over, keepdim=True)
        ctx.save_for_backward(x, mean)
        return mean.flatten(), (x - mean).square_().mean(over)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_mean: Tensor, of_var: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        count = x.numel() // x.shape[1]
        slope = (of_var * (2.0 / count)).view_as(mean)
        return torch.addcmul((of_mean / count).view_as(mean) - slope * mean, x, slope)


def _moments(norm: nn.Module, x: Tensor) -> BatchNormStatistics:
    assert isinstance(norm, BATCH_NORMS)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, var = _Moments.apply(x.float())
    # In training mode the layer is about to change its buffers in place.
    copy = torch.clone if norm.training else torch.detach
    return BatchNormStatistics(mean, var, copy(norm.running_mean), copy(norm.running_var))


def _version(value: Tensor) -> int:
    """How often a tensor was changed in place; inference tensors do not count that."""
    return 0 if value.is_inference() else value._version


def _find(modules: dict[str, nn.Module], name: str) -> nn.Module:
    path = name.removesuffix(INPUT)
    if path not in modules:
        names = [n for n in modules if n]
        close = difflib.get_close_matches(path, names, n=3, cutoff=0.5) or names[:8]
        raise ModelError(f"the model has no module '{path}'; the closest are: {', '.join(close)}")
    return modules[path]
