"""The processes that torchrun has started, joined to one group; also those that replace processes that have ended."""

from __future__ import annotations

import atexit
import os
import time
from contextlib import suppress
from datetime import timedelta
from typing import Protocol
from uuid import uuid4

from accelerate import PartialState
from torch import distributed as dist

from synthkd.errors import CheckpointError
from synthkd.system.shares import leave_groups

LONGEST = timedelta(minutes=30)
"""Time for all processes to come: they import packages first. torch waits as long by itself."""
PAUSE = 0.1
"""Seconds between two looks into the store of torchrun, and before the interpreter ends."""


def join(cpu: bool) -> PartialState:
    """Join the group of torchrun's processes, unless that is done or there is one process only; return its state.

    A process that has joined leaves the group before its interpreter ends.

    Args:
        cpu: whether the run is to leave GPUs alone.

    Raises:
        CheckpointError: the processes do not find each other.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    try:
        if world == 1 or dist.is_initialized():
            return PartialState(cpu=cpu)
        atexit.register(_leave)
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            return PartialState(cpu=cpu)
        rank = int(os.environ["RANK"])
        return PartialState(cpu=cpu, store=_new_store(rank, world), rank=rank, world_size=world)
    except (RuntimeError, TimeoutError) as error:
        if world == 1:
            raise
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"the {world} processes of the run do not find each other at {where} ({reason}); see that every machine "
            "reaches this address and the others (GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME names their network), then "
            "the same command resumes"
        ) from error


def _leave() -> None:
    """Leave the group that this process has joined, so that no thread of gloo works while the interpreter ends.

    A thread that lets go of a tensor then aborts the process, however well its work has ended, in a command as in
    somebody's own script. The threads of a group end with it, but for one that DistributedDataParallel has used, which
    torch keeps: the pause is for these. A group of NCCL is left alone, since leaving may wait for processes at work.
    """
    with suppress(Exception):  # the others may have gone already, and nobody is left who could do anything about it
        leave_groups()
        if dist.is_initialized() and dist.get_backend() == dist.Backend.GLOO:
            dist.destroy_process_group()
    time.sleep(PAUSE)


class Store(Protocol):
    """What is used of a store of torch.distributed, which keeps values by their keys for all processes."""

    def get(self, key: str) -> bytes:
        """The value; there is one."""

    def set(self, key: str, value: str) -> None:
        """Keep a value."""

    def check(self, keys: list[str]) -> bool:
        """Whether there are values of all the keys."""


def _new_store(rank: int, world: int) -> Store:
    """A store for all processes of the group that no earlier process has written to.

    The store that torchrun hosts outlives its processes. After a restart the addresses of processes that have ended
    are still in it, and no number tells the restarts apart: each machine counts its own.
    """
    # Their module has these names by `from ... import *`.
    connect, within = dist.TCPStore, dist.PrefixStore  # type: ignore[attr-defined]
    store = connect(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=LONGEST)
    new: Store = within(agreed_place(store, rank, world), store)
    return new


def agreed_place(store: Store, rank: int, world: int, longest: timedelta = LONGEST) -> str:
    """A name that the living processes of a group agree on, whatever earlier ones have left in the store.

    The first process makes up the name, the others leave their marks under it, and the first one lists these. Whoever
    finds its own mark in the list knows that the name is no remain: nobody lists the marks of processes to come.

    Args:
        store: of the group.
        rank: number of this process.
        world: number of processes.
        longest: how long to wait for the others.

    Raises:
        TimeoutError: a process does not come in time.
    """
    mark, end = uuid4().hex, time.monotonic() + longest.total_seconds()
    if rank == 0:
        store.set("synthkd/place", mark)
    # Python waits, and not the store, since a signal ends the wait of Python only.
    while time.monotonic() < end:
        place = _lead(store, mark, world) if rank == 0 else _follow(store, mark, rank)
        if place is not None:
            return place
        time.sleep(PAUSE)
    raise TimeoutError(f"not all of them came within {longest.total_seconds() / 60:g} minutes")


def _lead(store: Store, mark: str, world: int) -> str | None:
    """The place of the first process, as soon as all others have left their marks there."""
    keys = [f"synthkd/{mark}/{other}" for other in range(1, world)]
    if not store.check(keys):
        return None
    store.set(f"synthkd/{mark}/all", " ".join(store.get(key).decode() for key in keys))
    return mark


def _follow(store: Store, mark: str, rank: int) -> str | None:
    """The place that the store names, as soon as the first process has listed this process's mark there."""
    if not store.check(["synthkd/place"]):
        return None
    place = store.get("synthkd/place").decode()
    store.set(f"synthkd/{place}/{rank}", mark)
    listed = f"synthkd/{place}/all"
    return place if store.check([listed]) and mark in store.get(listed).decode().split() else None
