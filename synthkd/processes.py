"""Passes of a network shared out among processes, with the result of one process.

Every process holds the whole batch and runs the network on its own part of the rows; then all of them get all outputs.
So losses, priorities and controllers see what they see in one process, whatever they compute from a batch. Sums over
processes round differently from sums in one process; nothing else differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import recursively_apply
from torch import Tensor, nn
from torch import distributed as dist
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from synthkd.passes import joined_statistics
from synthkd.system.shares import consecutive
from synthkd.taps import mean_and_variance
from synthkd.types import BatchNormStatistics, Outputs

State = TypeVar("State")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Processes:
    """The processes that share passes; one process alone computes everything itself.

    Attributes:
        rank: number of this process.
        world: number of processes.
        device: of this process; what is exchanged goes through its memory.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = CPU

    @staticmethod
    def of(accelerator: Accelerator) -> Processes:
        """The processes of a run."""
        return Processes(accelerator.process_index, accelerator.num_processes, accelerator.device)

    def dividing(self, count: int) -> Processes:
        """These processes if they can share a batch of `count` images evenly, else this one alone."""
        return self if count % self.world == 0 else ONE_PROCESS

    def outputs(self, run: Callable[[Tensor], Outputs], images: Tensor) -> Outputs:
        """What `run` gives for a batch that every process holds; see `outputs_of_each`."""
        return self.outputs_of_each([run], images)[0]

    def outputs_of_each(self, runs: Sequence[Callable[[Tensor], Outputs]], images: Tensor) -> list[Outputs]:
        """What several networks give for a batch that every process holds.

        Each process runs its own rows. Gradients of the outputs reach the weights in `runs` for these rows alone, so
        `add_gradients` belongs after the backward pass; the gradient of `images` is that of all rows. A batch that
        cannot be divided evenly is run in every process.

        Args:
            runs: each gives a row for each row of its argument; moments of BatchNorm layers may join all rows.
            images: `[N, ...]`, the same in every process.
        """
        if self.dividing(len(images)).world == 1:
            return [run(images) for run in runs]
        if images.requires_grad:
            images = _Whole.apply(images)
        rows = images.chunk(self.world)[self.rank]
        return self._of_all([run(rows) for run in runs])

    def samples(self, sample: Callable[[Tensor, int], Tensor], labels: Tensor) -> Tensor:
        """What `sample(labels, 0)` gives, without gradient; each process samples its `share`.

        Args:
            sample: takes some of the labels, and the place of the first of them; row i depends on label i alone.
            labels: int64 `[N]`, the same in every process; of images that exist, their numbers.
        """
        share = self.share(len(labels))
        if share == slice(0, len(labels)):
            return sample(labels, 0)
        own = sample(labels[share], share.start).detach()
        filled = torch.cat([own, own[:1].expand(-(-len(labels) // self.world) - len(own), *own.shape[1:])])
        spans = [consecutive(len(labels), rank, self.world) for rank in range(self.world)]
        each = zip(_gathered(filled.to(self.device), self.world), spans, strict=True)
        return torch.cat([rows[: span.stop - span.start] for rows, span in each]).to(own.device)

    def share(self, count: int) -> slice:
        """The rows that this process makes of `count` rows that all get; see `consecutive`.

        Of fewer rows than processes it makes all: nothing that runs without a row would be known of them.
        """
        return slice(0, count) if count < self.world else consecutive(count, self.rank, self.world)

    def every(self, value: Tensor) -> Tensor:
        """`[world, ...]`: the tensors of all processes, which have one shape, in their order and without gradient."""
        return _gathered(value.to(self.device), self.world).to(value.device)

    def mean(self, state: State) -> State:
        """The mean of the states of all processes.

        Args:
            state: nested dicts and lists of tensors and of other values; only tensors of floating-point numbers differ.
        """
        tensors: list[Tensor] = []

        def collect(tensor: Tensor) -> Tensor:
            tensors.append(tensor)
            return tensor

        recursively_apply(collect, state, test_type=_is_averaged)
        if self.world == 1 or not tensors:
            return state
        flat = torch.cat([tensor.detach().flatten().to(self.device, torch.float32) for tensor in tensors])
        means = iter((_total(flat, self.world) / self.world).split([tensor.numel() for tensor in tensors]))
        averaged: State = recursively_apply(
            lambda tensor: next(means).view_as(tensor).to(tensor), state, test_type=_is_averaged
        )
        return averaged

    def norms(self) -> AbstractContextManager[object]:
        """Context manager in which BatchNorm layers in training mode use the moments of the rows of all processes."""
        return nullcontext() if self.world == 1 else _SharedNorms(self.world)

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of all processes, after a backward pass through `outputs`.

        Args:
            parameters: of the network that ran; the same ones have a gradient in every process.
        """
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.world == 1 or not gradients:
            return
        flat = _total(torch.cat([gradient.flatten() for gradient in gradients]), self.world)
        for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(total.view_as(gradient))

    def _of_all(self, own: Sequence[Outputs]) -> list[Outputs]:
        """The outputs of all rows, and the moments of BatchNorm layers over all rows."""
        # One exchange for all, since its latency counts and not its size.
        values = iter(self._joined([value for one in own for value in (one.logits, *one.features.values())]))
        return [Outputs(next(values), {path: next(values) for path in one.features}, self._moments(one)) for one in own]

    def _joined(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The rows of all processes of each tensor `[N, ...]`."""
        flat = _Gathered.apply(torch.cat([value.flatten(1) for value in values], 1), self.world).flatten(0, 1)
        columns = flat.split([value[0].numel() for value in values], 1)
        return [
            column.to(value.dtype).unflatten(1, value.shape[1:]) if value.dim() > 1 else column[:, 0].to(value.dtype)
            for column, value in zip(columns, values, strict=True)
        ]

    def _moments(self, own: Outputs) -> Mapping[str, BatchNormStatistics]:
        if not own.statistics:
            return {}
        pairs = torch.cat([torch.cat([one.mean, one.var]) for one in own.statistics.values()])
        sizes = [2 * len(one.mean) for one in own.statistics.values()]
        of_processes = []
        for process in _Gathered.apply(pairs, self.world):
            parts = [pair.chunk(2) for pair in process.split(sizes)]
            named = zip(own.statistics.items(), parts, strict=True)
            of_processes.append({path: replace(one, mean=mean, var=var) for (path, one), (mean, var) in named})
        return joined_statistics(of_processes, [1] * self.world)


FEW = 200_000
"""Numbers that are gathered and summed up in each process on CPUs."""
ONE_PROCESS = Processes()
"""One process, which computes everything itself."""


def _is_averaged(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _gathered(value: Tensor, world: int) -> Tensor:
    """`[world, ...]`, the tensors of all processes in their order."""
    values = [torch.empty_like(value, memory_format=torch.contiguous_format) for _ in range(world)]
    dist.all_gather(values, value.contiguous())
    return torch.stack(values)


def _total(value: Tensor, world: int) -> Tensor:
    """The sum of the tensors of all processes."""
    # By gloo a small all_reduce takes about as long as three of these.
    if value.device.type == "cpu" and world * value.numel() <= FEW:
        return _gathered(value, world).sum(0)
    value = value.contiguous()
    dist.all_reduce(value)
    return value


class _Gathered(torch.autograd.Function):
    """The tensors of all processes; each process takes the gradient of its own from the loss, which all compute."""

    @staticmethod
    def forward(_: Any, value: Tensor, world: int) -> Tensor:
        return _gathered(value, world)

    @staticmethod
    @once_differentiable
    def backward(_: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[dist.get_rank()], None


class _Whole(torch.autograd.Function):
    """A tensor of which each process uses some rows; its gradient has those of all processes."""

    @staticmethod
    def forward(_: Any, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return _total(gradient, dist.get_world_size())


class _SharedNorms(TorchFunctionMode):
    """Gives `torch.nn.functional.batch_norm` in training mode the moments of all processes.

    Torch's SyncBatchNorm does so on GPUs alone, and would have to take the place of the layers. A mode also meets
    layers of other libraries, which call the same function.
    """

    def __init__(self, world: int) -> None:
        super().__init__()
        self._world = world

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.batch_norm:
            return self._batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
        y: Tensor
        y, mean, var = _BatchNorm.apply(x, weight, bias, eps, self._world)
        if running_mean is not None and running_var is not None:
            count = self._world * (x.numel() // x.shape[1])
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            # The stored variance is unbiased, as in every BatchNorm.
            running_var.lerp_((var * (count / max(1, count - 1))).to(running_var.dtype), momentum)
        return y


class _BatchNorm(torch.autograd.Function):
    """BatchNorm by the moments of all processes, each of which holds as many rows."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, world: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        own = torch.stack(mean_and_variance(x.to(torch.promote_types(x.dtype, torch.float32))))
        means, variances = _gathered(own, world).unbind(1)
        mean = means.mean(0)
        # Within the processes and between them: mean square minus squared mean would lose digits.
        var = (variances + (means - mean).square()).mean(0)
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps, ctx.world = eps, world
        ctx.mark_non_differentiable(mean, var)
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps), mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_y: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var = ctx.saved_tensors
        scale, shape = torch.rsqrt(var + ctx.eps), [1, -1] + [1] * (x.dim() - 2)
        # The derivative as if mean and scale were constants; its sums for the weights are those of this process's rows,
        # and `Processes.add_gradients` adds those of the others.
        of_x, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            of_y, x, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        sums = _total(torch.stack([of_bias, of_weight]), ctx.world) / (ctx.world * (x.numel() // x.shape[1]))
        # They depend on every row: w s (dy - mean(dy) - x^ mean(dy x^)) with x^ = (x - mean) s is the whole derivative.
        factor = scale if weight is None else scale * weight
        slope = -factor * scale * sums[1]
        offset = -factor * sums[0] - slope * mean
        of_x = of_x.add_(offset.view(shape).to(x.dtype)).addcmul_(x, slope.view(shape).to(x.dtype))
        return (of_x, None, None, None, None) if weight is None else (of_x, of_weight, of_bias, None, None)
