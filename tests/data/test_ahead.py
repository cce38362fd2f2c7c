"""Images that worker processes decode ahead: the same batches, whatever the workers do, and no process stays behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import active_children
from pathlib import Path
from typing import IO

import pytest
import torch

from synthkd.data.ahead import Ahead
from synthkd.data.epochs import EpochSource
from synthkd.data.hybrid import HybridDataset
from synthkd.data.read.folder import IN_MEMORY, Storage, read_folder
from synthkd.data.read.on_disk import DiskImages
from synthkd.data.sources import RealImages, RealSource
from synthkd.processes import Processes
from synthkd.settings import AugmentSettings, Curve
from synthkd.system.stopping import Stopped, defer_signals, pending_signal, stoppable
from synthkd.types import Batch, Part
from tests.data.read.test_listing import folder, zipped
from tests.data.read.test_on_disk import pictures

CPU = torch.device("cpu")
SCRIPT = """
import sys
from multiprocessing import active_children
from pathlib import Path
import torch
from synthkd.data.ahead import Ahead
from synthkd.data.read.folder import Storage, read_folder

images = read_folder(sys.argv[1], size=8, storage=Storage(0.0, Path(sys.argv[2]), workers=2)).images
ahead = Ahead(images, lambda step: torch.tensor([step]))
ahead.circle = [ahead]
ahead.wait(0)
print(*[child.pid for child in active_children()])
"""


def main(images: str, cache: str) -> None:
    """Print the workers' numbers, and the sum of all images after a signal."""
    source = read_folder(images, size=8, storage=Storage(0.0, Path(cache), workers=2))
    batches = EpochSource(source.images, source.labels, 2, AugmentSettings(), 0, CPU)
    with suppress(Stopped), stoppable(), defer_signals():
        batches.batch(0)
        print(*[child.pid for child in active_children()], flush=True)
        while not pending_signal():
            time.sleep(0.01)
        print(sum(float(batches.batch(step).images.sum()) for step in range(1, 30)), flush=True)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return folder(tmp_path / "set", pictures(40))


def storage(tmp_path: Path, workers: int = 2) -> Storage:
    return Storage(0.0, tmp_path / f"cache{workers}", workers)


def epochs(path: Path, where: Storage = IN_MEMORY) -> EpochSource:
    source = read_folder(path, size=8, storage=where)
    return EpochSource(source.images, source.labels, 7, AugmentSettings(flip=True, shift=1), 5, CPU)


def same(one: Batch, other: Batch) -> bool:
    return torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_on_disk_are_those_in_memory_and_resume_within_one(tmp_path: Path, images: Path, workers: int) -> None:
    lazy, whole = epochs(images, storage(tmp_path, workers)), epochs(images)
    first = [lazy.batch(step) for step in range(3)]
    started = len(active_children())
    resumed = epochs(images, storage(tmp_path, workers))
    batches = [*first, *(resumed.batch(step) for step in range(3, 24))]
    assert all(same(batch, whole.batch(step)) for step, batch in enumerate(batches))
    assert started == workers
    del lazy
    assert not active_children(), "all is decoded"


def test_a_batch_of_a_zip_is_decoded_in_workers(tmp_path: Path) -> None:
    path = zipped(tmp_path / "set.zip", pictures(40))
    lazy, whole = epochs(path, storage(tmp_path)), epochs(path)
    assert all(same(lazy.batch(step), whole.batch(step)) for step in range(12))
    assert isinstance(lazy.images, DiskImages)
    assert lazy.images.lacking() == 0


def test_workers_decode_what_is_drawn_next(tmp_path: Path, images: Path) -> None:
    lazy = read_folder(images, size=8, storage=storage(tmp_path)).images
    assert isinstance(lazy, DiskImages)
    ahead = Ahead(lazy, lambda step: torch.arange(8 * step, 8 * step + 8))
    ahead.wait(2)
    assert lazy.part(torch.arange(16, 24)).lacking() == 0
    assert lazy.part(torch.arange(16)).lacking() == 16
    ahead.close()
    assert not active_children()


def test_workers_end_unnoticed_by_the_handler_of_a_loader_of_the_caller(tmp_path: Path, images: Path) -> None:
    """torch sets one at its first worker, which raises for each worker that was stopped."""
    calls: list[int] = []
    before = signal.signal(signal.SIGCHLD, lambda number, _: calls.append(number))
    try:
        lazy = read_folder(images, size=8, storage=storage(tmp_path)).images
        ahead = Ahead(lazy, lambda step: torch.arange(8 * step, 8 * step + 8))
        ahead.wait(0)
        calls.clear()
        ahead.close()
        assert calls == []
        os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
        assert calls == [signal.SIGCHLD], "it is set again"
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_nothing_is_started_for_images_in_memory_without_workers_or_with_a_whole_cache(
    tmp_path: Path, images: Path
) -> None:
    everything = read_folder(images, size=8, storage=storage(tmp_path)).images
    assert len(everything[:]) == 40
    for pixels in (
        everything,
        read_folder(images, size=8).images,
        read_folder(images, size=8, storage=storage(tmp_path, 0)).images,
    ):
        Ahead(pixels, lambda _: torch.arange(8)).wait(0)
        assert not active_children()


def test_mixtures_on_disk_are_those_in_memory(tmp_path: Path, images: Path) -> None:
    growing = Curve(kind="linear", start=0.0, end=1.0)
    sources = [read_folder(images, size=8), read_folder(images, size=8, storage=storage(tmp_path))]
    whole, lazy = (
        HybridDataset(
            [RealSource(RealImages(one.images, one.labels), 3), lambda count: torch.rand(count, 3, 8, 8)],
            [growing, None],
            batch_size=8,
            total=12,
        )
        for one in sources
    )
    assert all(same(whole.batch(step), lazy.batch(step)) for step in range(12))
    assert same(whole.batch(4), lazy.batch(4)), "a step again"


def test_a_killed_worker_costs_nothing_but_time(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
    lazy, whole = epochs(images, storage(tmp_path)), epochs(images)
    assert same(lazy.batch(0), whole.batch(0))
    for child in active_children():
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
    assert all(same(lazy.batch(step), whole.batch(step)) for step in range(1, 12))
    assert caplog.text.count("images are decoded without workers from here on: ") == 1
    assert not active_children()


def start(tmp_path: Path, images: Path) -> tuple[int, IO[str], list[int]]:
    """A process in a group of its own that waits for a signal, what it prints, and its workers."""
    reading, writing = os.pipe()
    pid = os.fork()  # a new interpreter would take seconds to import torch
    if not pid:
        try:
            os.setpgid(0, 0)
            for descriptor in (1, 2):
                os.dup2(writing, descriptor)
            sys.stdout = sys.stderr = os.fdopen(writing, "w")
            main(str(images), str(tmp_path / "cache"))
        finally:
            os._exit(0)
    os.close(writing)
    printed = os.fdopen(reading)
    workers = [int(word) for word in printed.readline().split()]
    assert len(workers) == 2
    return pid, printed, workers


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for_the_end(pids: list[int]) -> None:
    deadline = time.monotonic() + 60
    while any(map(is_alive, pids)):
        assert time.monotonic() < deadline, "a worker stays behind"
        time.sleep(0.1)


def test_workers_leave_a_signal_to_the_main_process_and_end_with_it(tmp_path: Path, images: Path) -> None:
    pid, printed, workers = start(tmp_path, images)
    os.killpg(pid, signal.SIGTERM)
    rest = printed.read()
    os.waitpid(pid, 0)
    whole = read_folder(images, size=8)
    batches = EpochSource(whole.images, whole.labels, 2, AugmentSettings(), 0, CPU)
    assert rest == f"{sum(float(batches.batch(step).images.sum()) for step in range(1, 30))}\n"
    wait_for_the_end(workers)


def test_workers_end_after_a_kill(tmp_path: Path, images: Path) -> None:
    pid, _, workers = start(tmp_path, images)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    wait_for_the_end(workers)


def test_workers_end_with_a_program_that_ends(tmp_path: Path, images: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(images), str(tmp_path / "cache")]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore:This DataLoader will create"}  # on a machine of one core
    process = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True, env=environment)
    assert process.stderr == ""
    wait_for_the_end([int(word) for word in process.stdout.split("\n")[0].split()])


def test_each_of_two_processes_decodes_its_rows_alone_of_the_same_batches(images: Path, tmp_path: Path) -> None:
    def source(where: Storage, rank: int, world: int) -> EpochSource:
        read = read_folder(images, size=8, storage=where)
        return EpochSource(read.images, read.labels, 8, AugmentSettings(), 5, CPU, Part(rank, world))

    whole = source(IN_MEMORY, 0, 1)
    for rank in range(2):
        own = source(Storage(0.0, tmp_path / f"rank{rank}", 0), rank, 2)
        assert isinstance(own.images, DiskImages)
        for step in range(3):
            every, some = whole.batch(step), own.batch(step)
            assert torch.equal(some.images, every.images[rank::2])
            assert torch.equal(some.labels, every.labels[rank::2])
        assert len(own.images) - own.images.lacking() == 3 * 4


@pytest.mark.parametrize("kind", ["teacher", "student"])
def test_workers_decode_the_share_of_their_process_where_all_get_all_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def samples(
        self: Processes, sample: Callable[[torch.Tensor, int], torch.Tensor], rows: torch.Tensor
    ) -> torch.Tensor:
        share = self.share(len(rows))
        return sample(rows[share], share.start).repeat(2, 1, 1, 1)  # the other process is not there

    monkeypatch.setattr(Processes, "samples", samples)
    read = read_folder(folder(tmp_path / "large", pictures(200)), size=8, storage=storage(tmp_path, 1))
    assert isinstance(read.images, DiskImages)
    processes, rows = Processes(1, 2), []
    source = EpochSource(read.images, read.labels, 8, AugmentSettings(), 5, CPU, processes)
    real = RealSource(RealImages(read.images, read.labels), 5, processes=processes)
    for step in range(3):
        assert len(source.batch(step) if kind == "teacher" else real.draw(8, step)[0]) == 8
    whole = RealSource(RealImages(torch.zeros(200, 3, 8, 8, dtype=torch.uint8), read.labels), 5)
    for step in range(12):
        numbers = source.rows(step) if kind == "teacher" else whole.draw(8, step)[0].rows
        assert numbers is not None
        rows.append(numbers[4:])
    ahead = source._ahead if kind == "teacher" else real._ahead
    assert ahead is not None
    ahead.close()
    assert read.images.part(torch.cat(rows[:3])).lacking() == 0
    others = sorted(set(range(200)) - set(torch.cat(rows).tolist()))
    assert read.images.part(torch.tensor(others)).lacking() == len(others)
