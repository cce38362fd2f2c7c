"""Work that the processes of torchrun share, and work that one of them does while the others wait.

`distill` and `teach` take one step together. Other work is of parts that do not depend on each other: a process does
its share of them alone, as if torchrun had started no other, so each part is what one process makes of it.
"""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr
from datetime import timedelta
from pathlib import Path
from typing import TypeVar, cast

from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import distributed

from synthkd.errors import SynthkdError
from synthkd.pipelines.config import JobConfig
from synthkd.pipelines.run.device import process_state
from synthkd.pipelines.run.directory import run_directory
from synthkd.system.environment import TORCHRUN

T = TypeVar("T")

_PATIENCE = timedelta(days=365)
"""How long a process waits for another one: until that one is done. One that dies closes its connections, which ends
the wait at once."""
_ONE = {
    "num_processes": 1,
    "process_index": 0,
    "local_process_index": 0,
    "distributed_type": DistributedType.NO,
    "backend": None,
}
"""What accelerate knows of processes where there is one."""


def count() -> int:
    """Number of processes that work together here: 1 before a job has joined those of torchrun, and inside `alone`."""
    return int(PartialState._shared_state.get("num_processes", 1))


def rank() -> int:
    """Number of this process among them, from 0."""
    return int(PartialState._shared_state.get("process_index", 0))


@contextmanager
def alone() -> Iterator[None]:
    """Context manager in which this process is the only one: jobs inside exchange nothing with the other processes.

    Progress and warnings are those of the main process; the others show none.
    """
    quiet = rank() != 0
    states = [state._shared_state for state in (PartialState, AcceleratorState)]
    before = [dict(state) for state in states]
    environment = {name: os.environ.pop(name) for name in TORCHRUN if name in os.environ}
    # Changed in place: an accelerator that was made before shares these, and is one of a single process inside, too.
    for state in states:
        if state:
            state.update(_ONE)
    try:
        with redirect_stderr(io.StringIO()) if quiet else nullcontext():
            yield
    finally:
        os.environ.update(environment)
        for state, values in zip(states, before, strict=True):
            state.clear()
            state.update(values)


def on_main(once: Callable[[], T]) -> T:
    """The result of work that the main process does alone, in every process; the others wait as long as it takes.

    Args:
        once: the work; what it returns, or the `SynthkdError` that it raises, can be pickled.

    Raises:
        SynthkdError: as `once`, in every process.
    """
    if count() == 1:
        return once()
    group = _group()  # before the work, since the other processes make it now
    message: list[T | tuple[type[SynthkdError], str] | None] = [None, None]
    if rank() == 0:
        try:
            with alone():
                message[0] = once()
        except SynthkdError as error:
            message[1] = type(error), str(error)
            distributed.broadcast_object_list(message, 0, group)
            raise
    distributed.broadcast_object_list(message, 0, group)
    if message[1] is not None:
        kind, text = cast(tuple[type[SynthkdError], str], message[1])
        raise kind.__new__(kind, text)  # not by its constructor, which may take other arguments
    return cast(T, message[0])


def share(parts: Sequence[T]) -> Sequence[T]:
    """This process's share of independent parts: every part is in the share of one process; inside `alone` all are."""
    return parts[rank() :: count()]


def gathered(value: T) -> list[T]:
    """The values of all processes, by their numbers, in every process; waits for the slowest."""
    if count() == 1:
        return [value]
    values: list[T | None] = [None] * count()
    distributed.all_gather_object(values, value, _group())
    return cast(list[T], values)


def from_main(value: T | None) -> T:
    """The value of the main process, in every process; what the others give is not looked at."""
    message = [value]
    if count() > 1:
        distributed.broadcast_object_list(message, 0, _group())
    return cast(T, message[0])


@contextmanager
def shared_directory(name: str, config: JobConfig) -> Iterator[Path]:
    """The run directory of a job in every process; the main process chooses it and holds its lock inside.

    Args:
        name: of the job, e.g. "audit".
        config: of the job.

    Raises:
        SynthkdError: see `run_directory`; in every process.
    """
    process_state(config)
    with ExitStack() as stack:
        yield on_main(lambda: stack.enter_context(run_directory(name, config)))


def _group() -> distributed.ProcessGroup:
    """The processes in a group of their own, by gloo also on GPUs, since they wait for each other for hours."""
    return _group_beside(distributed.group.WORLD)


@functools.cache
def _group_beside(_: distributed.ProcessGroup | None) -> distributed.ProcessGroup:
    group = distributed.new_group(backend="gloo", timeout=_PATIENCE)
    assert isinstance(group, distributed.ProcessGroup)  # every process is a member
    return group


def first_to_tell(about: str) -> bool:
    """Whether no process of torchrun has asked this before: of an error that all meet, one line is enough.

    The first error is the cause; those of the other processes follow from it, or are the same.

    Args:
        about: what is told, the same in every process.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return True
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        # Without an agent nobody counts; before the processes are joined, all meet the same errors.
        return distributed.is_initialized() or os.environ.get("RANK", "0") == "0"
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = distributed.TCPStore(address, port, is_master=False)  # type: ignore[attr-defined]
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return int(store.add(f"synthkd/{restarts}/{about}", 1)) == 1
