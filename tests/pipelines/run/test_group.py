"""Processes agree on a new place in a store that remembers earlier ones, or say in a line that they do not meet."""

import threading
import time
from datetime import timedelta

import pytest
from torch import distributed as dist

from synthkd.errors import CheckpointError
from synthkd.pipelines.run import group


def agree(store: dist.Store, world: int, last: int) -> list[str | None]:
    """The places of all processes, of which process `last` comes late."""
    places: list[str | None] = [None] * world

    def process(rank: int) -> None:
        time.sleep(0.3 * (rank == last))
        places[rank] = group.agreed_place(store, rank, world, timedelta(seconds=10))

    threads = [threading.Thread(target=process, args=[rank]) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return places


@pytest.fixture
def store() -> dist.Store:
    return dist.HashStore()


@pytest.mark.parametrize("last", [0, 1, 2])
def test_after_each_restart_all_agree_on_a_new_place_whoever_comes_last(store: dist.Store, last: int) -> None:
    every = [agree(store, 3, last) for _ in range(3)]
    assert all(len({*places}) == 1 and None not in places for places in every)
    assert len({places[0] for places in every}) == 3


def test_a_start_that_died_while_they_met_is_no_place_to_meet(store: dist.Store) -> None:
    for rank in (0, 1):
        with pytest.raises(TimeoutError, match="not all of them came"):
            group.agreed_place(store, rank, 3, timedelta(seconds=0.2))
    died = store.get("synthkd/place").decode()
    (place,) = {*agree(store, 3, last=0)}
    assert place not in (died, None)


def test_processes_that_do_not_meet_say_where_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*_: int) -> dist.Store:
        raise dist.DistNetworkError("The client socket has timed out\nException raised from ...")

    monkeypatch.setattr(group, "_new_store", nobody)
    values = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "node7", "MASTER_PORT": "29400"}
    for name, value in {**values, "TORCHELASTIC_USE_AGENT_STORE": "True"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CheckpointError) as raised:
        group.join(cpu=True)
    text = str(raised.value)
    assert "\n" not in text
    assert text.startswith("the 4 processes of the run do not find each other at node7:29400 (The client socket has")
    assert "GLOO_SOCKET_IFNAME" in text
