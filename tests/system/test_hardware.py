"""What is written beside a number can go into JSON, and memory is in bytes."""

import json
import platform

import torch

from synthkd.system.hardware import describe, peak_memory_bytes


def test_hardware_is_described_in_plain_values() -> None:
    facts = describe(torch.device("cpu"))
    assert json.loads(json.dumps(facts)) == facts
    assert list(facts) == ["cpu", "cores", "threads", "gpu", "torch", "python", "platform"]
    assert facts["cpu"]
    assert facts["gpu"] is None
    assert facts["python"] == platform.python_version()
    assert facts["threads"] == torch.get_num_threads()


def test_the_peak_of_memory_is_in_bytes_and_holds_what_was_allocated() -> None:
    block = bytearray(b"x" * 300_000_000)
    assert len(block) < peak_memory_bytes() < 1e12
