"""The processes of a job and the share of each: who does what, and how results come together again.

A function that shares its work takes a `Shares` and does what `span` or `turns` give to this process. With `ALONE`, the
default, one process does everything and nothing is sent. Tensors stay on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed

from synthkd.errors import CheckpointError, SynthkdError
from synthkd.system.text import first_line

T = TypeVar("T")

PATIENCE = timedelta(days=365)
"""How long a process waits for the others. A process that has ended is noticed at once, whatever this says."""


def consecutive(count: int, rank: int, world: int) -> slice:
    """The rows of process `rank` among `count` that `world` processes share, each of them neighbouring rows.

    This is the rule of `Shares`, `Processes` and `Part`. The first processes have one row more where the rows cannot be
    divided evenly, so that as many have one as if the rows went to the processes in turn.
    """
    each, left = divmod(count, world)
    start = rank * each + min(rank, left)
    return slice(start, start + each + (rank < left))


@dataclass(frozen=True)
class Shares:
    """The processes that share the work of a job.

    All of them call the methods below in the same order, but for `span` and `turns`, which send nothing.

    Attributes:
        rank: number of this process, from 0 on.
        world: number of processes.
        group: of torch.distributed, for tensors on the CPU; None for one process.
    """

    rank: int = 0
    world: int = 1
    group: distributed.ProcessGroup | None = None

    @classmethod
    def of_processes(cls) -> Shares:
        """Those of the process group of torch.distributed; of one process where there is none."""
        if not distributed.is_initialized() or distributed.get_world_size() == 1:
            return ALONE
        return cls(distributed.get_rank(), distributed.get_world_size(), _patient_group(distributed.group.WORLD))

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def span(self, count: int) -> slice:
        """This process's consecutive share of `count` rows; see `consecutive`."""
        return consecutive(count, self.rank, self.world)

    def turns(self, items: Iterable[T]) -> Iterator[T]:
        """This process's items, every `world`-th and not consecutive ones, since their cost differs along the way."""
        return (item for number, item in enumerate(items) if number % self.world == self.rank)

    def values(self, mine: T) -> list[T]:
        """The value of every process, in their order; for small values, which are pickled."""
        if self.group is None:
            return [mine]
        values: list[T | None] = [None] * self.world
        distributed.all_gather_object(values, mine, self.group)
        return list(values)  # type: ignore[arg-type]

    def gather(self, mine: Tensor) -> list[Tensor]:
        """The tensor of every process, in their order; they may have different shapes."""
        if self.group is None:
            return [mine]
        shapes = self.values((tuple(mine.shape), mine.dtype))
        tensors = []
        for rank, (shape, dtype) in enumerate(shapes):
            tensor = mine.contiguous() if rank == self.rank else torch.empty(shape, dtype=dtype)
            if tensor.numel():
                distributed.broadcast(tensor, rank, self.group)
            tensors.append(tensor)
        return tensors

    def whole(self, of_first: Tensor | None) -> Tensor | None:
        """The tensor of the first process, or None; what the others give is not looked at."""
        if self.group is None:
            return of_first
        there = self.first(lambda: of_first is not None)
        return self.gather(of_first if of_first is not None and self.is_first else torch.zeros(0))[0] if there else None

    def rows(self, mine: Tensor) -> Tensor:
        """The rows of all processes one after the other, as `span` divided them."""
        return mine if self.group is None else torch.cat(self.gather(mine))

    def sum(self, mine: Tensor) -> Tensor:
        """The sum over the processes of tensors of one shape; every process gets the same bits."""
        if self.group is None:
            return mine
        total = mine.clone().contiguous()
        distributed.all_reduce(total, group=self.group)
        return total

    def first(self, work: Callable[[], T]) -> T:
        """What the first process finds, in every process; the others wait and do not work.

        Args:
            work: returns a value that can be pickled.

        Raises:
            SynthkdError: the work raised it; see `agreed`.
        """
        if self.group is None:
            return work()
        own: list[T | None] = [None]
        with self.agreed():
            if self.is_first:
                with together(ALONE):
                    own = [work()]
        copies = list(own)
        distributed.broadcast_object_list(copies, 0, self.group)
        # The first process keeps its own object.
        return own[0] if self.is_first else copies[0]  # type: ignore[return-value]

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Context manager for work without exchange: an error of one process becomes an error of all at its end.

        So no process waits in vain for one that has failed. The first process's error is what a user reads.

        Raises:
            SynthkdError: the first one, in the order of the processes.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            if self.group is None:
                raise
            error = raised
        if self.group is None:
            return
        errors = self.values(None if error is None else _passed_on(error))
        rank, failed = next(((rank, one) for rank, one in enumerate(errors) if one is not None), (0, None))
        if error is not None and not isinstance(error, SynthkdError):
            raise error  # as it is: a lack of memory is told by those who know the job
        if failed is not None:
            kind, message = failed
            where = f"process {rank}: " if rank else ""
            # Made without the constructor: those of subclasses take other arguments than a message.
            raise kind.__new__(kind, f"{where}{message}") from error


_PATIENT: dict[distributed.ProcessGroup | None, distributed.ProcessGroup] = {}
"""Group of a job -> the one of the same processes that `Shares` uses."""


def _patient_group(whole: distributed.ProcessGroup | None) -> distributed.ProcessGroup:
    """All processes in a group of their own: by gloo also where the job's backend is NCCL, and with more patience."""
    if whole not in _PATIENT:
        group = distributed.new_group(backend="gloo", timeout=PATIENCE)
        assert isinstance(group, distributed.ProcessGroup)  # of all processes, so of this one too
        _PATIENT[whole] = group
    return _PATIENT[whole]


def leave_groups() -> None:
    """Leave the groups that `Shares.of_processes` has made, whose threads end with that."""
    if distributed.is_initialized():
        for group in _PATIENT.values():
            distributed.destroy_process_group(group)
    _PATIENT.clear()


def _passed_on(error: Exception) -> tuple[type[SynthkdError], str]:
    """The error as the other processes raise it."""
    if isinstance(error, SynthkdError):
        return type(error), str(error)
    return CheckpointError, f"{type(error).__name__}: {first_line(error)}"


ALONE = Shares()
"""One process, which does all of the work."""

_TOGETHER: ContextVar[Shares] = ContextVar("_TOGETHER", default=ALONE)


@contextmanager
def together(shares: Shares) -> Iterator[None]:
    """Context manager in which all these processes do the same, so that `of_all` may give each a share of it."""
    token = _TOGETHER.set(shares)
    try:
        yield
    finally:
        _TOGETHER.reset(token)


def of_all() -> Shares:
    """The processes that do the same as this one just now: one outside `together`, and in work of the first alone."""
    return _TOGETHER.get()
