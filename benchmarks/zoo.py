"""Which networks of torchvision and timm work as teachers: each is saved at random weights, loaded and distilled from.

    python -m benchmarks.zoo [--all] [--libraries torchvision timm] [--minutes 35]

A cell builds a classification network of at most 30 million parameters, with 10 classes, saves its state dict, and
takes the first steps of a recipe with this file as its teacher: one round of a generator, and two steps of a small
student, on batches of two images. The generator is inversion for networks with BatchNorm statistics, else pixels.
Images have the smallest of 64, 96 and 128 pixels that the network itself accepts, or its own size. All such networks of
torchvision take part, and of each module of timm one that is small by its name; --all takes all of timm. They run in a
process of their own with limits on time and memory, so one that crashes costs one cell. No new cell starts after
--minutes. Finished cells are kept in benchmarks/runs/zoo, and those that died are run again; the tables are made from
benchmarks/results/zoo.json.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import resource
import tempfile
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import timm
import torch
import torchvision.models
import yaml
from safetensors.torch import save_model
from torch import nn

from benchmarks import common
from benchmarks.common import Row
from synthkd.errors import SynthkdError
from synthkd.models import load_model, parameters
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.run.device import make_accelerator
from synthkd.pipelines.student.assembly import assemble
from synthkd.settings import LoadedModel
from synthkd.settings.load import load_config
from synthkd.taps import has_statistics

RUNS = common.RUNS / "zoo"
SIZES_KEPT = RUNS / "sizes.json"
TORCHVISION, TIMM = "torchvision", "timm"
MOST_PARAMETERS = 30_000_000
CLASSES = 10
SIZES = (64, 96, 128)
SECONDS, BYTES = 900.0, 10 * 2**30
"""Most time and memory of a cell."""
PASSES, REFUSED, DIED, NOT_BUILT = "passes", "refused", "died", "not built"
"""Outcomes of a cell: refused by synthkd in one line, died with anything else, or not even built by its library."""
SMALL = (
    "atto",
    "femto",
    "pico",
    "nano",
    "xxs",
    "xx_small",
    "_050",
    "tiny",
    "micro",
    "_xs",
    "small",
    "lite",
    "_s",
)
"""What names of small networks contain, the smallest first."""
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
COLUMNS = "library | generator | pixels | pass | of | families"
WRONG = "network | pixels | outcome | why"


@dataclass(frozen=True, order=True)
class Network:
    """A network of a library.

    Attributes:
        library: torchvision or timm.
        family: the module of the library that has it.
        name: in the library.
        parameters: with 10 classes.
    """

    library: str
    family: str
    name: str
    parameters: int

    @property
    def place(self) -> Path:
        """The directory of its cell."""
        return RUNS / f"{self.library}-{self.name}"


def build(library: str, name: str) -> nn.Module:
    """The network as its library makes it, with 10 classes and random weights."""
    if library == TIMM:
        network: nn.Module = timm.create_model(name, pretrained=False, num_classes=CLASSES)
    else:
        network = torchvision.models.get_model(name, weights=None, num_classes=CLASSES)
    return network


def networks(libraries: Sequence[str], everything: bool) -> Iterator[Network]:
    """The networks of the libraries that are small enough; of each module of timm all, or the first in `_by_size`."""
    sizes: dict[str, int] = json.loads(SIZES_KEPT.read_text(encoding="utf-8")) if SIZES_KEPT.exists() else {}
    for library, family, names in _families(libraries):
        for name in names:
            key = f"{library}:{name}"
            if key not in sizes:
                sizes[key] = _parameters(library, name)
                common.write(SIZES_KEPT, sizes)
            if sizes[key] <= MOST_PARAMETERS:
                yield Network(library, family, name, sizes[key])
                if library == TIMM and not everything:
                    break


def _families(libraries: Sequence[str]) -> Iterator[tuple[str, str, list[str]]]:
    """Library, module, and names of its classification networks, those first that are small by their names."""
    if TORCHVISION in libraries:
        library = torchvision.models
        for name in library.list_models(module=library):
            yield TORCHVISION, library.get_model_builder(name).__module__.rpartition(".")[2], [name]
    if TIMM in libraries:
        for family in timm.list_modules():
            names = timm.list_models(module=family, exclude_filters="test_*")  # miniatures for timm's own tests
            yield TIMM, family, sorted(names, key=_by_size)


def _by_size(name: str) -> tuple[int, int, str]:
    """Orders names by what they say about the size, e.g. `atto` or `small`, then by their lengths."""
    hint = next((number for number, word in enumerate(SMALL) if word in name), len(SMALL))
    return hint, len(name), name


def _parameters(library: str, name: str) -> int:
    """Number of parameters; the meta device has shapes and no numbers, which saves most of the time."""
    try:
        with torch.device("meta"):
            network = build(library, name)
    except Exception:  # some networks need true numbers to be built
        network = build(library, name)
    return parameters(network)


# A cell


def try_network(one: Network, folder: Path) -> Row:
    """Build, save, load and distill from a network; `folder` takes its files.

    Returns:
        The row of the cell.
    """
    row: Row = {**asdict(one), "size": None, "generator": None, "why": ""}
    try:
        torch.manual_seed(0)
        network = build(one.library, one.name).eval()
        row["size"] = size_of(network)
        weights = _saved(network, one.library, folder)
    except Exception as error:
        return {**row, "outcome": NOT_BUILT, "why": _line(error)}
    row["generator"] = "inversion" if any(has_statistics(module) for module in network.modules()) else "pixels"
    recipe = recipe_of(row, weights, _normalisation(network))
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    try:
        take_steps(path)
    except SynthkdError as error:
        return {**row, "outcome": REFUSED, "why": str(error)}
    except Exception as error:
        traceback.print_exc()
        return {**row, "outcome": DIED, "why": f"{type(error).__name__}: {_line(error)}"}
    return {**row, "outcome": PASSES}


def take_steps(recipe: Path) -> None:
    """The first steps of the run of a recipe: load and check the teacher, a round of the generator, two steps."""
    config = load_config(DistillConfig, recipe, [])
    assert isinstance(config.teacher, LoadedModel)
    assembly = assemble(config, [load_model(config.teacher)], make_accelerator(config), None)
    assert assembly.transfer_set.generated is not None
    assembly.transfer_set.generated.rounds.beside_student(0)
    for step in range(assembly.learner.total):
        assembly.step(step)


def size_of(network: nn.Module) -> int:
    """The smallest of `SIZES` that the network takes, or its own size: pixels of the side of a square."""
    about = getattr(network, "default_cfg", {})
    own = int(about.get("input_size", (3, 224, 224))[-1])
    for size in () if about.get("fixed_input_size") else SIZES:
        try:
            with torch.no_grad():
                network(torch.rand(2, 3, size, size))
        except Exception:  # too small for its windows, patches or pooling
            continue
        return size
    return own


def recipe_of(row: Row, weights: Path, normalisation: Row) -> Row:
    """The recipe of a cell: a round of the generator, and two steps of a small student."""
    teacher = {
        "kind": "load",
        "model": f"{row['library']}:{row['name']}",
        "weights": str(weights),
        "channels": 3,
        "size": row["size"],
        "classes": CLASSES,
        **normalisation,
    }
    return {
        "name": "zoo",
        "teacher": teacher,
        "student": {"arch": "convnet", "width": 4},
        "transfer_set": {"generator": {"kind": row["generator"], "batch_size": 2}, "bank": {"capacity": 16}},
        "distill": {"batch_size": 2},
        "phases": [{"kind": "joint", "steps": 2, "every": 2}],
        "threads": 1,
        "device": "cpu",
    }


def _saved(network: nn.Module, library: str, folder: Path) -> Path:
    """Its state dict in a file, as people have those of the library: safetensors of timm, a pickle of torchvision."""
    if library == TIMM:
        save_model(network, str(folder / "model.safetensors"))
        return folder / "model.safetensors"
    torch.save(network.state_dict(), folder / "model.pth")
    return folder / "model.pth"


def _normalisation(network: nn.Module) -> Row:
    about = getattr(network, "default_cfg", None)
    return IMAGENET if not about else {key: list(map(float, about[key])) for key in ("mean", "std")}


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [repr(error)])[0]


# Processes


def _work(connection: Connection) -> None:
    """Try the networks that arrive, one after the other, until None does."""
    resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    while (one := connection.recv()) is not None:
        with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
            connection.send(try_network(one, Path(folder)))


class Worker:
    """A process that tries networks, and is replaced after a crash or too long a time."""

    def __init__(self) -> None:
        self._process: multiprocessing.process.BaseProcess | None = None

    def __call__(self, one: Network) -> Row:
        """The row of a network; that it died where the process does not give one in time."""
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=_work, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()
        started = time.perf_counter()
        self._connection.send(one)
        why = f"no end after {SECONDS:.0f} s"
        try:
            if self._connection.poll(SECONDS):
                row: Row = self._connection.recv()
                return {**row, "seconds": round(time.perf_counter() - started, 1)}
        except EOFError:
            self._process.join(10)
            why = f"the process ended with code {self._process.exitcode}"
        self._process.kill()
        self._process = None
        return {**asdict(one), "size": None, "generator": None, "outcome": DIED, "why": why, "seconds": None}

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._connection.send(None)
            self._process.join()


def cell(one: Network, worker: Worker) -> Row:
    """Run a cell, or read it where it is finished; one that died is run again by the next call."""
    if common.is_finished(one.place):
        return common.result_of(one.place)
    row = worker(one)
    print(f"{one.library}:{one.name}: {row['outcome']} {row['why']}", flush=True)
    if row["outcome"] != DIED:
        common.write(one.place / "result.json", row)
    return row


# Tables


def tables(content: Row) -> str:
    """What passes, in groups of families, and each network that does not, with the reason."""
    groups: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in content["cells"]:
        groups[row["library"], row["generator"] or "none", str(row["size"] or "none")].append(row)
    rows = []
    for key, cells in sorted(
        groups.items(), key=lambda item: (item[0][0], item[0][1], int(item[0][2].replace("none", "0")))
    ):
        passing = sum(one["outcome"] == PASSES for one in cells)
        families = Counter(one["family"] for one in cells)
        names = ", ".join(family + (f" ({count})" if count > 1 else "") for family, count in sorted(families.items()))
        rows.append([*key, str(passing), str(len(cells)), names])
    wrong = [
        [f"`{one['library']}:{one['name']}`", str(one["size"] or ""), one["outcome"], one["why"].replace("|", "\\|")]
        for one in content["cells"]
        if one["outcome"] != PASSES
    ]
    return "\n\n".join([common.table(COLUMNS, rows), common.table(WRONG, wrong)])


def main(argv: Sequence[str] | None = None) -> None:
    """Try what is wanted, write the cells after each, and print the tables."""
    parser = common.options("zoo", __doc__)
    parser.add_argument("--all", action="store_true", help="every network of timm, not one of each module")
    parser.add_argument("--libraries", nargs="*", default=[TORCHVISION, TIMM], choices=[TORCHVISION, TIMM])
    parser.add_argument("--minutes", type=float, default=35.0, help="no new cell starts after them")
    arguments = parser.parse_args(argv)
    ends, worker = time.perf_counter() + 60 * arguments.minutes, Worker()
    wanted = networks(arguments.libraries, arguments.all)
    keys = (one for one in wanted if common.is_finished(one.place) or time.perf_counter() < ends)
    cells = common.collect(
        "zoo", keys, lambda one: cell(one, worker), lambda row: (row["library"], row["family"], row["name"])
    )
    worker.close()
    print(tables({"cells": cells}))


if __name__ == "__main__":
    main()
