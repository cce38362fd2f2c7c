"""The energy counters are files or a module made up here."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from synthkd.models.energy import measure_energy

CPU = torch.device("cpu")
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
        result = measure_energy(call, 4, CPU, seconds=0.01, powercap=folder)
        assert result.joules == pytest.approx(1030e-6 / 4, rel=1e-12)
        assert result.source == "RAPL counter of package-0, dram, idle power included"
        assert int((folder / "intel-rapl:0" / "energy_uj").read_text()) < SPAN - 500  # it did go round

    def test_a_single_call_where_there_is_no_time(self, tmp_path):
        folder = powercap(tmp_path, zone0="package-0")
        assert measure_energy(spending(folder, zone0=300), 1, CPU, 0.0, folder).joules == pytest.approx(300e-6)

    def test_a_counter_that_stands_still_measures_nothing(self, tmp_path):
        result = measure_energy(lambda: None, 1, CPU, 0.0, powercap(tmp_path, zone0="package-0"))
        assert result.joules is None
        assert result.source.startswith("not measured: RAPL counter of package-0")
        assert result.source.endswith("did not move in 0 s")

    def test_without_counters_it_says_so(self, tmp_path):
        result = measure_energy(lambda: None, 1, CPU, 0.0, tmp_path / "none")
        assert result.joules is None
        assert str(result) == f"not measured: {tmp_path / 'none'} does not exist (not Linux, or a virtual machine)"
        only_cores = powercap(tmp_path, zone0_0="core")
        assert measure_energy(lambda: None, 1, CPU, 0.0, only_cores).source.endswith(
            "has no counter of a processor package"
        )

    def test_unreadable_counters_name_the_file_and_the_remedy(self, tmp_path, monkeypatch):
        folder = powercap(tmp_path, zone0="package-0")
        read_text = Path.read_text

        def guarded(path: Path) -> str:
            if path.name == "energy_uj":
                raise PermissionError(13, "Permission denied", str(path))
            return read_text(path)

        monkeypatch.setattr(Path, "read_text", guarded)
        source = measure_energy(lambda: None, 1, CPU, 0.0, folder).source
        assert source.endswith("energy_uj cannot be read (Permission denied); make it readable, or measure as root")

    def test_a_damaged_counter_is_no_error(self, tmp_path):
        folder = powercap(tmp_path, zone0="package-0")
        (folder / "intel-rapl:0" / "energy_uj").write_text("?")
        assert "is not a number" in measure_energy(lambda: None, 1, CPU, 0.0, folder).source

    def test_other_devices_have_no_counter(self):
        assert measure_energy(lambda: None, 1, torch.device("meta"), 0.0).source == (
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
        result = measure_energy(call, 8, torch.device("cuda"), 0.0)
        assert result.joules == pytest.approx(0.020 / 8)
        assert str(result) == "0.0025 J for an image (NVML counter of the GPU board, idle power included)"

    def test_a_missing_pynvml_names_the_package(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pynvml", None)
        source = measure_energy(lambda: None, 1, torch.device("cuda"), 0.0).source
        assert source == "not measured: the package 'pynvml' is not installed: pip install nvidia-ml-py"
