"""What a round of the inversion generator costs at four image sizes, beside its network as it was before.

    python -m benchmarks.generator_sizes [--rounds 2]

A round of 16 images of 3 channels, with the default settings, against a ResNet of width 8 and depth 8 with random
weights, which change no time. The network before had two stages at every size, so that its linear layer drew a quarter
of the image's sides; up to 32 pixels both are the same. CPU-seconds are the median of the rounds after a first one,
on one thread, old and new in turns. Bytes are those that autograd keeps for the backward pass of a step, which are a
function of the sizes alone. Written to benchmarks/results/generator_sizes.json.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks import common
from benchmarks.common import Row
from synthkd.generators import inversion
from synthkd.generators.inversion_network import GeneratorNetwork
from synthkd.generators.settings import InversionSettings
from synthkd.models import build
from synthkd.models.classifier import parameters
from synthkd.settings import ZooModel
from synthkd.types import ImageSpec

SIZES, BATCH = (32, 64, 96, 224), 16
COLUMNS = (
    "pixels | network | start | stages | parameters | kept for backward, MB | of it the network, MB | CPU-s a round"
)


class TwoStages(nn.Module):
    """The network before: a start of a quarter of the image's sides, which are multiples of 4, and two stages."""

    def __init__(self, spec: ImageSpec, latent: int, width: int) -> None:
        super().__init__()
        self.start = (2 * width, spec.height // 4, spec.width // 4)
        self.project = nn.Linear(latent, self.start[0] * self.start[1] * self.start[2])
        layers: list[nn.Module] = [nn.BatchNorm2d(2 * width)]
        for out in (2 * width, width):
            convolution = nn.Conv2d(2 * width, out, 3, padding=1, bias=False)
            layers += [nn.Upsample(scale_factor=2), convolution, nn.BatchNorm2d(out), nn.LeakyReLU(0.2, inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, spec.channels, 3, padding=1), nn.Sigmoid())

    def forward(self, latent: Tensor) -> Tensor:
        """Latent vectors float32 `[N, latent]` to images `[N, C, H, W]` in (0, 1)."""
        hidden = self.project(latent).unflatten(1, self.start)
        images: Tensor = self.layers(hidden.contiguous(memory_format=torch.channels_last))
        return images


NETWORKS: dict[str, type[GeneratorNetwork] | type[TwoStages]] = {"before": TwoStages, "now": GeneratorNetwork}


class Kept:
    """Bytes of the tensors that autograd keeps, each storage once, while its context is open."""

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}
        self._held: list[Tensor] = []  # a freed storage's address could be given to another one

    def take(self, tensor: Tensor) -> Tensor:
        """Note a tensor that autograd keeps."""
        storage = tensor.untyped_storage()
        self._sizes[storage.data_ptr()] = storage.nbytes()
        self._held.append(tensor)
        return tensor

    @property
    def bytes(self) -> int:
        """The sum so far."""
        return sum(self._sizes.values())


def measure(size: int, rounds: int) -> list[Row]:
    """A row for each network at one image size."""
    spec = ImageSpec(3, size, size, 10)
    torch.manual_seed(0)
    teacher = build(ZooModel(arch="resnet", width=8, depth=8), spec).eval().requires_grad_(False)
    generators, rows = {}, {}
    for name, network in NETWORKS.items():
        with mock.patch.object(inversion, "GeneratorNetwork", network):
            generator = generators[name] = inversion.Inversion(InversionSettings(batch_size=BATCH), teacher)
        kept, made = Kept(), generator.network.train()
        with torch.autograd.graph.saved_tensors_hooks(kept.take, lambda tensor: tensor):
            images = made(torch.randn(BATCH, generator.settings.latent))
            own = kept.bytes
            teacher(images)
        rows[name] = {
            "size": size,
            "network": name,
            "start": list(made.start),
            "stages": sum(isinstance(module, nn.Upsample) for module in made.modules()),
            "parameters": parameters(made),
            "network_bytes": own,
            "kept_bytes": kept.bytes,
        }
    seconds: dict[str, list[float]] = {name: [] for name in NETWORKS}
    for index in range(rounds + 1):
        for name, generator in generators.items():
            began = time.process_time()
            generator.round(index, difficulty=0.0)
            seconds[name].append(time.process_time() - began)
    return [{**row, "seconds": statistics.median(seconds[name][1:])} for name, row in rows.items()]


def tables(content: Row) -> str:
    """Two rows for each size: the network before, and that of now."""
    rows = []
    for row in content["rows"]:
        channels, height, width = row["start"]
        sizes = [f"{row[key] / 1e6:,.0f}" for key in ("kept_bytes", "network_bytes")]
        shape = [f"{channels}x{height}x{width}", str(row["stages"]), f"{row['parameters']:,}"]
        rows.append([str(row["size"]), row["network"], *shape, *sizes, f"{row['seconds']:.2f}"])
    return common.table(COLUMNS, rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table and write it."""
    parser = common.options("generator_sizes", __doc__)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = [row for size in SIZES for row in measure(size, arguments.rounds)]
    content: Row = {"rounds": arguments.rounds, "batch": BATCH, "rows": rows} | common.environment("torch")
    print(tables(content))
    common.save("generator_sizes", content)


if __name__ == "__main__":
    main()
