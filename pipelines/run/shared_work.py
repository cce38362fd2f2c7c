"""Work that the processes of torchrun share, and work that one of them does while the others wait.

`distill` and `teach` take one step together. Other work is of parts that do not depend on each other: a process does
its share of them alone, as if torchrun had started no other, so each part is what one process makes of it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import distributed

from synthkd.pipelines.config import JobConfig
from synthkd.pipelines.run.device import process_state
from synthkd.pipelines.run.directory import run_directory
from synthkd.system.environment import TORCHRUN, own_environment
from synthkd.system.shares import ALONE, Shares, together

T = TypeVar("T")

STORE_TIMEOUT = timedelta(seconds=10)
"""How long a process looks for the store of torchrun before it tells its error itself."""

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
        with together(ALONE), redirect_stderr(io.StringIO()) if quiet else nullcontext():
            yield
    finally:
        os.environ.update(environment)
        for state, values in zip(states, before, strict=True):
            state.clear()
            state.update(values)


def shares() -> Shares:
    """The processes that work together here: one before a job has joined those of torchrun, and inside `alone`."""
    return Shares.of_processes() if count() > 1 else ALONE


def joined(config: JobConfig) -> Shares:
    """The processes that torchrun started, for a job that shares its work; else this one alone.

    Args:
        config: of the job.

    Raises:
        ConfigError: see `own_environment`.
    """
    with own_environment():
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return ALONE  # accelerate, which may serve the caller, is left as it is
    process_state(config)
    return shares()


def on_main(once: Callable[[], T]) -> T:
    """The result of work that the main process does alone, in every process; the others wait as long as it takes.

    Args:
        once: the work; what it returns, or the `SynthkdError` that it raises, can be pickled.

    Raises:
        SynthkdError: as `once`, in every process.
    """

    def work() -> T:
        with alone():
            return once()

    return once() if count() == 1 else shares().first(work)


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
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        store = distributed.TCPStore(address, port, is_master=False, timeout=STORE_TIMEOUT)  # type: ignore[attr-defined]
        return int(store.add(f"synthkd/{restarts}/{about}", 1)) == 1
    except RuntimeError:  # its machine is gone
        return True
