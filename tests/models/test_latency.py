"""Median and quartiles of a clock that stands in for the real one; a model is timed as it is, and put back."""

import time

import pytest
import torch
from torch import Tensor, nn

from synthkd.models import Classifier
from synthkd.models.latency import Latency, measure_latency, time_calls
from synthkd.types import ImageSpec


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

    def test_a_model_is_timed_in_eval_mode_without_gradient_and_put_back(self):
        shapes, modes = [], []

        class Spy(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                shapes.append(tuple(x.shape))
                modes.append((self.training, torch.is_grad_enabled()))
                return x.flatten(1)[:, :5]

        model = Classifier(Spy(), ImageSpec(3, 12, 10, 5)).train()
        result = measure_latency(model, torch.device("cpu"), batch_size=4, calls=2)
        assert (result.batch_size, result.calls, result.device) == (4, 2, "cpu")
        assert result.threads == torch.get_num_threads()
        assert set(shapes) == {(4, 3, 12, 10)}
        assert set(modes) == {(False, False)}
        assert model.training
