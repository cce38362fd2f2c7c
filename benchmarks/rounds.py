"""What the exact rewritings of a generator's round save: the same losses with less arithmetic.

    python -m benchmarks.rounds [--rounds 24]

Rounds of all arms take turns in one process on one thread, each with a generator of its own: 64 images and 5 steps with
the adversarial term, the convnets of fashion_mnist.py on 1x28x28 and its ResNets on 3x32x32, freshly initialised, with
BatchNorm statistics and weights that are drawn. Times are of the processor. A ratio is that of the neighbouring rounds;
the results go to benchmarks/results/rounds.json.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import nn

from benchmarks import common, pairs
from benchmarks.common import Row
from synthkd.generators.inversion import Inversion
from synthkd.generators.inversion_network import BETAS, DoublingConv2d
from synthkd.generators.settings import InversionSettings
from synthkd.models.channels_last import channels_last
from synthkd.models.classifier import Classifier, Network
from synthkd.models.zoo import build
from synthkd.settings import ZooModel
from synthkd.settings.load import load_config
from synthkd.types import ImageSpec

SPECS = {"convnet": ImageSpec(1, 28, 28, 10), "resnet": ImageSpec(3, 32, 32, 10)}
SETTINGS = InversionSettings(adversarial=10.0)
WARM_UP = 3
ARMS = {
    "none": (),
    "teacher folded": ("teacher",),
    "student folded": ("student",),
    "upsampling in the convolution": ("network",),
    "all": ("teacher", "student", "network"),
}
COLUMNS = "pair | rewritings | ms a round, median | over none, median [quartiles]"


class Rewritten(Inversion):
    """The generator with some of its rewritings: of `teacher`, `student` and `network`."""

    def __init__(self, parts: Sequence[str], teacher: Classifier) -> None:
        self._parts = parts
        super().__init__(SETTINGS, teacher, 0, Accelerator(cpu=True))
        if "network" not in parts:
            upsampled(self.network.layers)
            self._meta = torch.optim.Adam(self.network.parameters(), SETTINGS.lr * SETTINGS.steps, BETAS)

    def _folded(self, network: Network, statistics: bool) -> Network:
        # Only the teacher has statistics that are matched.
        return super()._folded(network, statistics) if ("student", "teacher")[statistics] in self._parts else network


def upsampled(layers: nn.Sequential) -> None:
    """Put upsampling and a 3x3 convolution in the place of each convolution that doubles its map."""
    for place, layer in enumerate(layers):
        if isinstance(layer, DoublingConv2d):
            plain = nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1, bias=False)
            plain.load_state_dict(layer.state_dict())
            layers[place - 1], layers[place] = nn.Upsample(scale_factor=2), channels_last(plain)


def network_of(model: Row, spec: ImageSpec) -> Classifier:
    """A network whose BatchNorm layers have drawn statistics, weights and biases."""
    network = channels_last(build(load_config(ZooModel, model, []), spec).eval())
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in ((module.running_mean, -0.2, 0.2), (module.running_var, 0.5, 2.0)):
                assert tensor is not None
                tensor.uniform_(low, high)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return network


def costs(name: str, rounds: int) -> list[Row]:
    """Median round of each arm, and its ratio to the arm without rewritings."""
    torch.manual_seed(0)
    teacher, student = (
        network_of(model, SPECS[name]) for model in (pairs.PAIRS[name].teacher["model"], pairs.PAIRS[name].student)
    )
    generators = {arm: Rewritten(parts, teacher) for arm, parts in ARMS.items()}
    times: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for number in range(rounds):
        for arm, generator in generators.items():
            started = time.process_time()
            generator.round(number, 0.5, student)
            times[arm].append(time.process_time() - started)
    plain = times["none"][WARM_UP:]
    return [
        {"pair": name, "rewritings": arm, **common.relative_times(seconds[WARM_UP:], plain)}
        for arm, seconds in times.items()
    ]


def tables(content: Row) -> str:
    """A row for each arm."""
    rows = [
        [row["pair"], row["rewritings"], f"{row['ms']:.0f}", common.between(row["ratio"], *row["quartiles"])]
        for row in content["rows"]
    ]
    return common.table(COLUMNS, rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write the results and print the table."""
    parser = common.options("rounds", __doc__)
    parser.add_argument("--rounds", type=int, default=24)
    rounds = parser.parse_args(argv).rounds
    torch.set_num_threads(1)
    rows = [row for name in SPECS for row in costs(name, rounds)]
    content: Row = {"hardware": common.environment()["hardware"], "rows": rows}
    common.save("rounds", content)
    print(tables(content))


if __name__ == "__main__":
    main()
