"""Training on JPEG files that are decoded on demand, beside all images in memory: peak memory and speed.

    python -m benchmarks.lazy [--images 100000]
    python -m benchmarks.lazy --shards 200000
    python -m benchmarks.lazy --small 1000000

Folders of JPEGs of 224 x 224 pixels (300 drawn pictures, each file with bytes of its own), 30 steps of a small
classifier on batches of 32, one thread. Each row is a process of its own. Peak memory is what the process and its
workers have beyond their start, shared pages divided (PSS). Waiting is the time until a step has its batch.

With --shards the images are PNGs of 32 x 32 pixels in shards of 20,000: tars, and parquet by the number of rows in a
row group. With --small they are PNGs of 8 x 8 pixels in folders; what the memory grows by is that of the list of files.
The results of the other commands stay in the file.
"""

from __future__ import annotations

import io
import math
import multiprocessing
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks import common
from benchmarks.common import Row
from synthkd.data.epochs import EpochSource
from synthkd.data.read.folder import Storage, read_folder
from synthkd.data.written.writers import needed
from synthkd.models import build
from synthkd.settings import AugmentSettings, ZooModel
from synthkd.types import ImageSpec

SIDE, SHARDED, SMALL, CLASSES, PICTURES = 224, 32, 8, 10, 300
SHARD, GROUPS = 20_000, (100, 1_000, 5_000, 20_000)
BATCH, STEPS = 32, 30
FEW = 5_000
TARS, PARQUET = "tars", "parquet by "
COLUMNS = (
    "images | pixels | decoded, GB | read from | workers | peak memory, GB | waiting, ms/image | training, images/s"
)


def drawn(side: int) -> list[bytes]:
    """The files of all pictures: JPEGs, or PNGs where they are small."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(PICTURES):
        buffer = io.BytesIO()
        coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
        picture = coarse.resize((side, side), Image.Resampling.BICUBIC)
        picture.save(buffer, "JPEG", quality=90) if side > SHARDED else picture.save(buffer, "PNG")
        files.append(buffer.getvalue())
    return files


def contents(count: int, side: int) -> Iterator[bytes]:
    """So many different files of pictures."""
    files = drawn(side)
    # Bytes after the end of a picture are no part of it, and make it another file.
    return (files[number % PICTURES] + number.to_bytes(4, "big") for number in range(count))


def make_folder(root: Path, count: int, side: int) -> None:
    """Write a directory per class with `count` files in all."""
    for label in range(CLASSES):
        (root / str(label)).mkdir(parents=True)
    for number, content in enumerate(contents(count, side)):
        (root / str(number % CLASSES) / f"{number}.jpg").write_bytes(content)


def make_parquet(root: Path, count: int, group: int) -> Path:
    """Write shards with row groups of so many rows; returns their pattern."""
    root.mkdir()
    pyarrow, parquet = needed("pyarrow"), needed("pyarrow.parquet")
    files = contents(count, SHARDED)
    for first in range(0, count, SHARD):
        images = [{"bytes": content, "path": None} for content in islice(files, SHARD)]
        labels = [number % CLASSES for number in range(first, first + len(images))]
        table = pyarrow.table({"image": images, "label": labels})
        parquet.write_table(table, root / f"{first:08}.parquet", row_group_size=group)
    return root / "*.parquet"


def make_tars(root: Path, count: int) -> Path:
    """Write WebDataset shards; returns their pattern."""
    root.mkdir()
    files = enumerate(contents(count, SHARDED))
    for first in range(0, count, SHARD):
        with tarfile.open(root / f"{first:08}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for number, content in islice(files, SHARD):
                for suffix, part in (("png", content), ("cls", str(number % CLASSES).encode())):
                    member = tarfile.TarInfo(f"{number:08}.{suffix}")
                    member.size = len(part)
                    tar.addfile(member, io.BytesIO(part))
    return root / "*.tar"


def train(path: Path, side: int, storage: Storage, results: Connection) -> None:
    """Read the images and train; sends a word when ready to be measured, then milliseconds and images per second."""
    torch.set_num_threads(1)
    results.send("ready")
    results.recv()
    source = read_folder(path, storage=storage)
    batches = EpochSource(source.images, source.labels, BATCH, AugmentSettings(flip=True), 0, torch.device("cpu"))
    model = build(ZooModel(arch="convnet", width=4), ImageSpec(3, side, side, CLASSES))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    batches.batch(0)  # the workers start
    waiting, started = 0.0, time.perf_counter()
    for step in range(1, STEPS + 1):
        before = time.perf_counter()
        batch = batches.batch(step)
        waiting += time.perf_counter() - before
        optimizer.zero_grad()
        F.cross_entropy(model(batch.images), batch.labels).backward()
        optimizer.step()
    seconds = time.perf_counter() - started
    results.send({"waiting_ms": 1000 * waiting / (STEPS * BATCH), "images_per_second": STEPS * BATCH / seconds})


def tree(pid: int) -> Iterator[int]:
    """A process and all below it."""
    yield pid
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split():
        yield from tree(int(child))


def memory(pid: int) -> int:
    """Bytes of a process and all below it, shared pages divided among those who share them."""
    total = 0
    try:
        for one in tree(pid):
            lines = Path(f"/proc/{one}/smaps_rollup").read_text(encoding="ascii").splitlines()
            total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    except OSError:  # one of them has just ended
        return 0
    return total


def measure(path: Path, count: int, side: int, where: str, storage: Storage) -> Row:
    """A row: a training in a process of its own, whose memory is looked at all the while."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=train, args=(path, side, storage, there))
    process.start()
    there.close()
    assert process.pid is not None
    here.recv()
    first = peak = memory(process.pid)
    here.send("go")
    while not here.poll(0.5):
        peak = max(peak, memory(process.pid))
    result = here.recv()
    process.join()
    workers = storage.workers if storage.memory == 0 else None
    decoded = count * 3 * side * side
    return {
        "images": count,
        "side": side,
        "decoded": decoded,
        "from": where,
        "workers": workers,
        "peak": peak - first,
        **result,
    }


def measured(counts: Sequence[int]) -> Iterator[Row]:
    """Rows of folders; the smallest one is also trained on in memory, and again from the cache."""
    with tempfile.TemporaryDirectory(dir=common.ROOT) as scratch:
        for count in counts:
            path = Path(scratch, str(count))
            make_folder(path, count, SIDE)
            if count == FEW:
                yield measure(path, count, SIDE, "memory", Storage(math.inf))
                yield measure(path, count, SIDE, "files", Storage(0.0, Path(scratch, "no workers"), 0))
            cached = Storage(0.0, Path(scratch, "workers"), 2)
            yield measure(path, count, SIDE, "files", cached)
            if count == FEW:
                yield measure(path, count, SIDE, "cache", cached)


def measured_small(counts: Sequence[int]) -> Iterator[Row]:
    """Rows of folders of small images."""
    with tempfile.TemporaryDirectory(dir=common.ROOT) as scratch:
        for count in counts:
            path = Path(scratch, f"small {count}")
            make_folder(path, count, SMALL)
            yield measure(path, count, SMALL, "files", Storage(0.0, Path(scratch, f"of small {count}"), 0))


def measured_shards(counts: Sequence[int]) -> Iterator[Row]:
    """Rows of shards; of the larger sets with the smallest row groups alone."""
    with tempfile.TemporaryDirectory(dir=common.ROOT) as scratch:
        for count in counts:
            places = {TARS: make_tars(Path(scratch, f"{count} tars"), count)}
            for group in GROUPS if count == counts[0] else GROUPS[:1]:
                places[f"{PARQUET}{group:,}"] = make_parquet(Path(scratch, f"{count} by {group}"), count, group)
            for where, path in places.items():
                yield measure(path, count, SHARDED, where, Storage(0.0, Path(scratch, f"{count} of {where}"), 0))


def tables(content: Row) -> str:
    """The table of a results file."""
    rows = [
        (
            f"{row['images']:,}",
            str(row["side"]),
            f"{row['decoded'] / 1e9:.1f}",
            row["from"],
            "-" if row["workers"] is None else str(row["workers"]),
            f"{row['peak'] / 1e9:.2f}",
            f"{row['waiting_ms']:.2f}",
            f"{row['images_per_second']:.0f}",
        )
        for row in content["rows"]
    ]
    return common.table(COLUMNS, rows)


def tenth(count: int) -> list[int]:
    """A set of a tenth of the images, and all of them."""
    return [count // 10, count]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write the results file and print the table."""
    parser = common.options("lazy", __doc__)
    parser.add_argument("--images", type=int, default=8_000, help="of the large folder")
    parser.add_argument("--small", type=int, default=0, help="images of the largest folder of small ones; 0: none")
    parser.add_argument("--shards", type=int, default=0, help="images of the larger set in shards; 0: none")
    arguments = parser.parse_args(argv)
    if arguments.shards:
        option, side, measured_rows = f"--shards {arguments.shards}", SHARDED, measured_shards(tenth(arguments.shards))
    elif arguments.small:
        option, side, measured_rows = f"--small {arguments.small}", SMALL, measured_small(tenth(arguments.small))
    else:
        option, side, measured_rows = f"--images {arguments.images}", SIDE, measured([FEW, arguments.images])
    content = common.read("lazy")
    rows = [row for row in content["rows"] if row["side"] != side]
    for row in measured_rows:
        print(row)
        rows.append(row)
    run = {"command": f"python -m benchmarks.lazy {option}", **common.environment("torch", "pillow", "pyarrow")}
    content["rows"] = sorted(rows, key=lambda row: -row["side"])
    content["runs"][str(side)] = run
    common.save("lazy", content)
    print(tables(content))


if __name__ == "__main__":
    main()
