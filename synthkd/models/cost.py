"""The cost of a model: parameters, bytes and multiplications (counted), time and energy (measured)."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from synthkd.errors import ConfigError
from synthkd.models.classifier import Classifier, parameters, state_bytes
from synthkd.models.energy import Energy, measure_energy
from synthkd.models.latency import Latency, forward_pass, measure_latency, torch_threads
from synthkd.taps import evaluating


@dataclass(frozen=True)
class Cost:
    """What a model costs to store and to run.

    Attributes:
        parameters: number of parameters, each counted once, however often it is shared.
        bytes: size of the saved state dict.
        macs: multiply-accumulate operations for one image in convolutions, linear layers and attention; activations,
            norms and biases are not counted.
        latency: time of a batch.
        energy: energy of one image in such a batch.
    """

    parameters: int
    bytes: int
    macs: int
    latency: Latency
    energy: Energy


def cost(
    model: Classifier,
    device: torch.device,
    batch_size: int = 1,
    threads: int | None = None,
    calls: int = 50,
    energy_seconds: float = 2.0,
) -> Cost:
    """The cost of a model in eval mode, measured on random images.

    Args:
        model: on any device, in any mode; unchanged, since a copy is measured.
        device: where to measure.
        batch_size: images in one call, for latency and energy.
        threads: torch's threads during the measurement; None: as many as it uses now.
        calls: number of timed calls.
        energy_seconds: time to run for the energy counter, which is coarse.

    Raises:
        ConfigError: batch_size, threads or calls below 1.
    """
    for name, value in (("batch_size", batch_size), ("threads", threads), ("calls", calls)):
        if value is not None and value < 1:
            raise ConfigError(f"cost: {name} must be at least 1, got {value}")
    # A copy, since the model may be in training on another device.
    network = copy.deepcopy(model).to(device).eval()
    latency = measure_latency(network, device, batch_size, threads, calls)
    with torch_threads(threads), torch.no_grad():
        energy = measure_energy(forward_pass(network, device, batch_size), batch_size, device, energy_seconds)
    return Cost(parameters(model), state_bytes(model), macs(network), latency, energy)


def macs(model: Classifier) -> int:
    """Multiply-accumulate operations for one image: half of the operations that torch's flop counter counts.

    The model's train/eval mode is restored.
    """
    from torch.utils.flop_counter import FlopCounterMode

    image = torch.zeros(1, *model.spec.shape, device=model.normalize.mean.device)
    # Fused attention is one operation, which not every version of the counter knows. Without it, attention is products.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            evaluating(model),
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            model(image)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops()) // 2
