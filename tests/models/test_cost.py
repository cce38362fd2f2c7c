"""Counts equal closed forms; the energy counters are files or a module made up here; times are only asked for order."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from synthkd.errors import ConfigError
from synthkd.models import Classifier, build
from synthkd.models.cost import Latency, cost, energy, macs, time_calls
from synthkd.settings import ZooModel
from synthkd.types import ImageSpec

CPU = torch.device("cpu")


def classifier(body: nn.Module, channels: int = 3, height: int = 12, width: int = 10, classes: int = 5) -> Classifier:
    return Classifier(body, ImageSpec(channels, height, width, classes))


class TestMacs:
    def test_convolution_and_linear_in_closed_form(self):
        """Every output value of a convolution takes in/groups x kernel area products, every weight of a linear one."""
        body = nn.Sequential(
            nn.Conv2d(3, 8, (5, 3), stride=2, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, groups=4),
            nn.Flatten(),
            nn.Linear(200, 7, bias=False),
            nn.Linear(7, 5),
        )
        first = 8 * (5 * 5) * 3 * (5 * 3)
        grouped = 8 * (5 * 5) * (8 // 4) * 9
        assert macs(classifier(body)) == first + grouped + 200 * 7 + 7 * 5

    def test_attention_in_closed_form(self):
        """Each token: 4 d^2 for query, key, value and output, 4 d^2 for the hidden layer, 2 L d for attention."""
        spec, d, depth, tokens = ImageSpec(1, 16, 16, 5), 32, 2, 16
        model = build(ZooModel(arch="vit", width=d, depth=depth), spec)
        block = tokens * (4 * d * d + 4 * d * d) + 2 * tokens * tokens * d
        assert macs(model) == tokens * 16 * d + depth * block + 5 * d

    def test_torchs_own_attention_is_counted_where_it_would_take_a_fast_path(self):
        class Attention(nn.Module):
            def __init__(self):
                super().__init__()
                self.attend = nn.MultiheadAttention(10, 2, batch_first=True)
                self.head = nn.Linear(10, 5)

            def forward(self, x: Tensor) -> Tensor:
                x = x.flatten(1, 2)
                return self.head(self.attend(x, x, x, need_weights=False)[0].mean(dim=1))

        before = torch.backends.mha.get_fastpath_enabled()
        tokens, d = 36, 10
        assert macs(classifier(Attention().eval())) == tokens * 4 * d * d + 2 * tokens * tokens * d + 5 * d
        assert torch.backends.mha.get_fastpath_enabled() == before

    def test_dropout_and_batch_norm_stay_in_their_modes_and_unmoved(self):
        body = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(), nn.Flatten(), nn.Linear(360, 5))
        model = classifier(body).train()
        body[1].eval()
        macs(model)
        assert [m.training for m in body] == [True, False, True, True]
        assert int(body[0].num_batches_tracked) == 0


class TestCost:
    def test_counts_of_the_convnet(self):
        """The 25,978 parameters that the zoo promises; 4 bytes each and 8 for each of three batch counters."""
        model = build(ZooModel(arch="convnet", width=16), ImageSpec(1, 28, 28, 10)).train()
        result = cost(model, CPU, batch_size=2, calls=3, energy_seconds=0.0)
        assert result.parameters == 25_978
        buffers = 2 * (16 + 32 + 64)
        assert result.bytes == 4 * (25_978 + buffers) + 3 * 8
        convolutions = 16 * 16 * 16 * 9 + 32 * 16 * 16 * 16 * 9 + 64 * 8 * 8 * 32 * 9
        assert result.macs == convolutions + 10 * 256
        assert (result.latency.batch_size, result.latency.calls, result.latency.device) == (2, 3, "cpu")
        assert model.training
        assert all(m.training for m in model.modules())

    def test_threads_are_used_named_and_put_back(self):
        seen = []

        class Spy(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                seen.append(torch.get_num_threads())
                return x.flatten(1)[:, :5]

        before = torch.get_num_threads()
        result = cost(classifier(Spy()), CPU, threads=before + 1, calls=2, energy_seconds=0.0)
        assert result.latency.threads == before + 1
        assert seen[0] == before + 1
        assert torch.get_num_threads() == before

    @pytest.mark.parametrize("name", ["batch_size", "threads", "calls"])
    def test_nothing_below_one(self, name):
        with pytest.raises(ConfigError, match=f"cost: {name} must be at least 1, got 0"):
            cost(classifier(nn.Flatten()), CPU, **{name: 0})


class TestLatency:
    def test_median_and_quartiles_of_the_calls_after_the_warm_up(self, monkeypatch):
        """Ten slow calls are warm-up; of 1, 2, 3, 4, 5 ms the quartiles are 2, 3 and 4."""
        now, durations = [0.0], iter([1.0] * 10 + [0.005, 0.001, 0.003, 0.004, 0.002])
        monkeypatch.setattr(time, "perf_counter", lambda: now[0])

        def call() -> None:
            now[0] += next(durations)

        result = time_calls(call, batch_size=4, threads=1, calls=5)
        assert (result.low_ms, result.median_ms, result.high_ms) == pytest.approx((2.0, 3.0, 4.0))

    def test_one_call_is_its_own_quartiles(self):
        result = time_calls(lambda: None, 1, 1, calls=1)
        assert result.low_ms == result.median_ms == result.high_ms

    def test_in_words(self):
        latency = Latency(1.5, 1.25, 2.0, 64, 1, "cpu", 50)
        assert str(latency) == "1.500 ms [1.250, 2.000] for a batch of 64 on cpu, threads: 1"


SPAN = 10**9


def powercap(folder: Path, **zones: str) -> Path:
    """Counters that stand 500 microjoules before their end; `zones` maps the number of a zone to its name."""
    for number, name in zones.items():
        zone = folder / f"intel-rapl:{number.removeprefix('zone').replace('_', ':')}"
        zone.mkdir()
        for file, content in {"name": name, "max_energy_range_uj": SPAN, "energy_uj": SPAN - 500}.items():
            (zone / file).write_text(f"{content}\n")
    return folder


def spending(folder: Path, **microjoules: int) -> Callable[[], None]:
    """A call that moves the counters of the zones named, round their end."""

    def call() -> None:
        for number, spent in microjoules.items():
            file = folder / f"intel-rapl:{number.removeprefix('zone').replace('_', ':')}" / "energy_uj"
            file.write_text(str((int(file.read_text()) + spent) % SPAN))

    return call


class TestEnergy:
    def test_packages_and_memory_count_across_their_wrap_around(self, tmp_path):
        """1,000 + 30 microjoules a call of 4 images; cores are part of a package and psys holds it."""
        folder = powercap(tmp_path, zone0="package-0", zone0_0="core", zone0_1="dram", zone1="psys")
        call = spending(folder, zone0=1000, zone0_0=700, zone0_1=30, zone1=5000)
        result = energy(call, 4, CPU, seconds=0.01, powercap=folder)
        assert result.joules == pytest.approx(1030e-6 / 4, rel=1e-12)
        assert result.source == "RAPL counter of package-0, dram, idle power included"
        assert int((folder / "intel-rapl:0" / "energy_uj").read_text()) < SPAN - 500  # it did go round

    def test_a_single_call_where_there_is_no_time(self, tmp_path):
        folder = powercap(tmp_path, zone0="package-0")
        assert energy(spending(folder, zone0=300), 1, CPU, 0.0, folder).joules == pytest.approx(300e-6)

    def test_a_counter_that_stands_still_measures_nothing(self, tmp_path):
        result = energy(lambda: None, 1, CPU, 0.0, powercap(tmp_path, zone0="package-0"))
        assert result.joules is None
        assert result.source.startswith("not measured: RAPL counter of package-0")
        assert result.source.endswith("did not move in 0 s")

    def test_without_counters_it_says_so(self, tmp_path):
        result = energy(lambda: None, 1, CPU, 0.0, tmp_path / "none")
        assert result.joules is None
        assert str(result) == f"not measured: {tmp_path / 'none'} does not exist (not Linux, or a virtual machine)"
        only_cores = powercap(tmp_path, zone0_0="core")
        assert energy(lambda: None, 1, CPU, 0.0, only_cores).source.endswith("has no counter of a processor package")

    def test_unreadable_counters_name_the_file_and_the_remedy(self, tmp_path, monkeypatch):
        folder = powercap(tmp_path, zone0="package-0")
        read_text = Path.read_text

        def guarded(path: Path) -> str:
            if path.name == "energy_uj":
                raise PermissionError(13, "Permission denied", str(path))
            return read_text(path)

        monkeypatch.setattr(Path, "read_text", guarded)
        source = energy(lambda: None, 1, CPU, 0.0, folder).source
        assert source.endswith("energy_uj cannot be read (Permission denied); make it readable, or measure as root")

    def test_a_damaged_counter_is_no_error(self, tmp_path):
        folder = powercap(tmp_path, zone0="package-0")
        (folder / "intel-rapl:0" / "energy_uj").write_text("?")
        assert "is not a number" in energy(lambda: None, 1, CPU, 0.0, folder).source

    def test_other_devices_have_no_counter(self):
        assert energy(lambda: None, 1, torch.device("meta"), 0.0).source == (
            "not measured: no energy counter is known for meta"
        )

    def test_gpu_counter_in_millijoules(self, monkeypatch):
        spent = [7]

        def handle(uuid: str) -> str:
            assert uuid == "GPU-abc"
            return uuid

        def call() -> None:
            spent[0] += 20

        fake = SimpleNamespace(
            NVMLError=RuntimeError,
            nvmlInit=lambda: None,
            nvmlDeviceGetHandleByUUID=handle,
            nvmlDeviceGetTotalEnergyConsumption=lambda _: spent[0],
        )
        monkeypatch.setitem(sys.modules, "pynvml", fake)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="abc"))
        result = energy(call, 8, torch.device("cuda"), 0.0)
        assert result.joules == pytest.approx(0.020 / 8)
        assert str(result) == "0.0025 J for an image (NVML counter of the GPU board, idle power included)"

    def test_a_missing_pynvml_names_the_package(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pynvml", None)
        source = energy(lambda: None, 1, torch.device("cuda"), 0.0).source
        assert source == "not measured: the package 'pynvml' is not installed: pip install nvidia-ml-py"
