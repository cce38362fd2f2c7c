"""Counts equal closed forms; threads are used and put back; nothing below one."""

import pytest
import torch
from torch import Tensor, nn

from synthkd.errors import ConfigError
from synthkd.models import Classifier, build
from synthkd.models.cost import cost, macs
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
