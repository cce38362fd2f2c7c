"""What is written beside a number can go into JSON, and memory is in bytes."""

import json
import platform
from pathlib import Path

import pytest
import torch

from synthkd.system import hardware
from synthkd.system.hardware import describe, peak_memory_bytes


def test_hardware_is_described_in_plain_values() -> None:
    facts = describe(torch.device("cpu"))
    assert json.loads(json.dumps(facts)) == facts
    assert list(facts) == ["cpu", "cores", "threads", "gpu", "torch", "python", "platform"]
    assert facts["cpu"]
    assert facts["gpu"] is None
    assert facts["python"] == platform.python_version()
    assert facts["threads"] == torch.get_num_threads()


@pytest.mark.parametrize(
    ("says", "has"),
    [
        ("model name\t: A 1\nflags\t\t: fpu avx512f avx512_bf16 fma\n", True),
        ("flags\t\t: fpu amx_bf16\nflags\t\t: fpu\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("flags\t\t: fpu avx512f avx512_vnni\n", False),
        (None, False),
    ],
)
def test_units_for_bfloat16_are_read_off_the_processor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, says: str | None, has: bool
) -> None:
    monkeypatch.setattr(hardware, "PROCESSOR", tmp_path / "cpuinfo")
    if says is not None:
        (tmp_path / "cpuinfo").write_text(says)
    assert hardware.has_bfloat16_units(torch.device("cpu")) is has


def test_the_peak_of_memory_is_in_bytes_and_holds_what_was_allocated() -> None:
    block = bytearray(b"x" * 300_000_000)
    assert len(block) < peak_memory_bytes() < 1e12
