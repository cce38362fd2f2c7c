"""Weights as trainers, wrappers and old versions of PyTorch leave them reach the network that they belong to."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_model
from torch import Tensor, nn

from synthkd.errors import ConfigError, ModelError
from synthkd.models import load, load_model, save
from synthkd.models.fitting import PREFIXES, load_file, load_strictly
from synthkd.models.weights import read_state_dicts
from synthkd.settings import LoadedModel

ENDINGS = (".th", ".tar", ".pth.tar", ".ckpt", ".pt", ".bin", ".weights", "")


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5))


def changed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Other values of the same kinds."""
    return {name: value + 1 for name, value in state.items()}


def equal(one: nn.Module, state: dict[str, Tensor]) -> bool:
    own = one.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[name], value) for name, value in state.items())


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_content_decides_and_not_the_ending(tmp_path: Path, ending: str) -> None:
    state = changed(network().state_dict())
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / f"pickle{ending}")
    model = network()
    assert load_file(model, tmp_path / f"pickle{ending}") == ("`state_dict` of the file",)
    assert equal(model, state)
    save_model(model, str(tmp_path / f"tensors{ending}"))
    assert load_file(network(1), tmp_path / f"tensors{ending}") == ()


@pytest.mark.parametrize("key", ["state_dict", "model", "net", "model_state_dict", "ema", "ema_state_dict", "anything"])
def test_one_state_dict_is_found_under_any_key(tmp_path: Path, key: str) -> None:
    state = changed(network().state_dict())
    optimizer = {"state": {0: {"momentum": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({"epoch": 3, "optimizer": optimizer, "args": {"lr": 0.1}, key: state}, tmp_path / "w")
    model = network()
    assert load_file(model, tmp_path / "w") == (f"`{key}` of the file",)
    assert equal(model, state)


def test_of_several_that_fit_the_model_comes_before_its_average_and_the_key_chooses(tmp_path: Path) -> None:
    first, average = network(1).state_dict(), network(2).state_dict()
    torch.save({"ema": average, "model": first, "head": {"weight": torch.zeros(3)}}, tmp_path / "w")
    model = network()
    assert load_file(model, tmp_path / "w") == ("`model` of the file (ema would fit too: weights_key chooses)",)
    assert equal(model, first)
    assert load_file(model, tmp_path / "w", "ema") == ("`ema` of the file",)
    assert equal(model, average)
    with pytest.raises(ConfigError, match=r"no state dict under 'eam'; it has 'ema', 'model', 'head'$"):
        load_file(model, tmp_path / "w", "eam")
    with pytest.raises(ModelError, match=r"^weights in `head` of .* do not fit"):
        load_file(model, tmp_path / "w", "head")


@pytest.mark.parametrize("prefix", [*PREFIXES, *map("".join, permutations(PREFIXES, 2))])
def test_prefixes_of_wrappers_are_removed(prefix: str) -> None:
    state = changed(network().state_dict())
    model = network()
    notes = load_strictly(model, {prefix + name: value for name, value in state.items()}, "FILE")
    assert notes == (f"without the prefix {prefix}",)
    assert equal(model, state)


def test_a_prefix_stays_where_the_names_do_not_fit_without_it() -> None:
    model = nn.Sequential()
    model.add_module("module", network())
    state = changed(model.state_dict())
    assert load_strictly(model, state, "FILE") == ()
    assert equal(model, state)
    one_without = {f"module.{name}": value for name, value in network().state_dict().items() if name != "3.bias"}
    with pytest.raises(ModelError, match=r"do not fit the model: 1 missing: 3\.bias; check"):
        load_strictly(network(), one_without, "FILE")
    with_another = {
        **{f"module.{name}": value for name, value in network().state_dict().items()},
        "loss": torch.ones(1),
    }
    with pytest.raises(ModelError, match="10 unexpected: module"):
        load_strictly(network(), with_another, "FILE")


def test_counters_that_old_pytorch_did_not_save_are_zero_and_nothing_else_is_filled() -> None:
    state = {name: value for name, value in changed(network().state_dict()).items() if "num_batches" not in name}
    model = network()
    model[1].num_batches_tracked.fill_(7)
    assert load_strictly(model, state, "FILE") == ("1 counters of BatchNorm filled with 0",)
    assert equal(model, {**state, "1.num_batches_tracked": torch.tensor(0)})
    with pytest.raises(ModelError, match=r"1 missing: 1\.running_mean"):
        load_strictly(network(), {name: value for name, value in state.items() if name != "1.running_mean"}, "FILE")


def test_counters_are_left_out_where_the_norm_is_frozen() -> None:
    from torchvision.ops import FrozenBatchNorm2d

    frozen, state = nn.Sequential(FrozenBatchNorm2d(3)), changed(nn.Sequential(nn.BatchNorm2d(3)).state_dict())
    assert load_strictly(frozen, state, "FILE") == ("1 counters of BatchNorm left out",)
    assert torch.equal(frozen[0].running_mean, state["0.running_mean"])
    with pytest.raises(ModelError, match=r"1 unexpected: 1\.num_batches_tracked"):
        load_strictly(frozen, {**state, "1.num_batches_tracked": torch.tensor(3)}, "FILE")


def test_safetensors_of_shared_tensors(tmp_path: Path) -> None:
    def tied(seed: int) -> nn.Sequential:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
        model[2].weight = model[0].weight
        return model

    saved, model = tied(0), tied(1)
    save_model(saved, str(tmp_path / "w.safetensors"))
    assert len(read_state_dicts(tmp_path / "w.safetensors")[""]) == 3
    assert load_file(model, tmp_path / "w.safetensors") == ("1 shared tensors taken by their other names",)
    assert equal(model, saved.state_dict())
    with pytest.raises(ModelError, match="1 missing"):
        load_file(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)), tmp_path / "w.safetensors")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precisions_become_those_of_the_model(dtype: torch.dtype) -> None:
    model = network()
    load_strictly(
        model, {n: v.to(dtype) if v.is_floating_point() else v for n, v in model.state_dict().items()}, "FILE"
    )
    assert all(value.dtype != dtype for value in model.state_dict().values())


def test_a_program_is_named_and_not_taken_for_weights(tmp_path: Path) -> None:
    model = network().eval()
    torch.jit.trace(model, torch.zeros(1, 1, 8, 8)).save(str(tmp_path / "script.pt"))
    torch.export.save(torch.export.export(model, (torch.zeros(1, 1, 8, 8),)), tmp_path / "export.pt2")
    with pytest.raises(ModelError, match=r"script\.pt is a TorchScript program, not a file of weights; save the state"):
        read_state_dicts(tmp_path / "script.pt")
    with pytest.raises(ModelError, match=r"export\.pt2 is a program of torch\.export, not a file of weights; save the"):
        read_state_dicts(tmp_path / "export.pt2")


class Block(nn.Module):
    """The residual block of He et al. 2015, section 4.2, under the names that public checkpoints have."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.stride, self.extra = stride, out - channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        zeros = torch.zeros(len(x), self.extra // 2, *y.shape[2:])
        return F.relu(y + torch.cat([zeros, x[:, :, :: self.stride, :: self.stride], zeros], dim=1))


class PublicResNet(nn.Module):
    """The network with shortcuts of option A: 3 stages of `count` blocks."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        for number, (channels, out) in enumerate([(16, 16), (16, 32), (32, 64)], start=1):
            first = Block(channels, out, 1 if number == 1 else 2)
            setattr(self, f"layer{number}", nn.Sequential(first, *(Block(out, out, 1) for _ in range(count - 1))))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


def loaded(path: Path, **options: Any) -> LoadedModel:
    return LoadedModel(kind="load", model="zoo:resnet", options=options, weights=str(path), size=32, classes=10)


@pytest.mark.parametrize("count", [1, 3])
def test_a_public_resnet_gives_its_own_logits_in_the_zoos_network(tmp_path: Path, count: int) -> None:
    torch.manual_seed(0)
    public = PublicResNet(count).train()
    public(torch.rand(32, 3, 32, 32))  # statistics that matter
    state = {f"module.{k}": v for k, v in public.eval().state_dict().items() if "num_batches" not in k}
    torch.save({"state_dict": state, "best_prec1": 91.7}, tmp_path / "resnet.th")
    model = load_model(loaded(tmp_path / "resnet.th", depth=6 * count + 2, shortcut="pad"))
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(model(images), public(images), atol=1e-4)
    assert model.notes[:3] == ("`state_dict` of the file", "without the prefix module.", "public names renamed")
    save(model, tmp_path / "saved")
    assert load(tmp_path / "saved").recipe["shortcut"] == "pad"


def test_wrong_options_of_the_zoo_are_named(tmp_path: Path) -> None:
    torch.save(PublicResNet(1).state_dict(), tmp_path / "w.th")
    with pytest.raises(ModelError, match=r"30 missing: stage1\.1\..*; check the architecture, its options"):
        load_model(loaded(tmp_path / "w.th", depth=14, shortcut="pad"))
    with pytest.raises(ModelError, match=r"10 missing: stage2\.0\.shortcut\.0"):
        load_model(loaded(tmp_path / "w.th", depth=8))
    with pytest.raises(ConfigError, match=r"^options of zoo:resnet: "):
        load_model(loaded(tmp_path / "w.th", dpeth=8))
    with pytest.raises(ConfigError, match=r"zoo has no model 'resent'; did you mean resnet"):
        load_model(LoadedModel(kind="load", model="zoo:resent", weights="w", size=32, classes=10))
    with pytest.raises(ConfigError, match=r"zoo:resnet without weights is untrained; set `weights`"):
        load_model(LoadedModel(kind="load", model="zoo:resnet", size=32, classes=10))


class Versioned(nn.Linear):
    """Refuses a state dict that does not say of which version it is, as torchvision's MNASNet does."""

    _version = 2

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        if metadata.get("version") != 2:
            raise ValueError(f"version should be set to 2 instead of {metadata.get('version')}\nsecond line")
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def test_a_module_that_asks_for_its_version_gets_it(tmp_path: Path) -> None:
    model, state = nn.Sequential(Versioned(2, 3)), changed(nn.Sequential(nn.Linear(2, 3)).state_dict())
    torch.save(state, tmp_path / "w")
    load_file(model, tmp_path / "w")
    assert equal(model, state)


def test_what_a_module_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 3)).state_dict(), tmp_path / "w")
    monkeypatch.setattr(Versioned, "_version", 1)
    with pytest.raises(ModelError, match=r"the network refuses them: version should be set to 2 instead of 1; save"):
        load_file(nn.Sequential(Versioned(2, 3)), tmp_path / "w")


def test_weights_of_torchs_averaged_model_load(tmp_path: Path) -> None:
    model, state = nn.Sequential(nn.Linear(2, 3)), changed(nn.Sequential(nn.Linear(2, 3)).state_dict())
    averaged = torch.optim.swa_utils.AveragedModel(nn.Sequential(nn.Linear(2, 3)))
    averaged.module.load_state_dict(state)
    torch.save(averaged.state_dict(), tmp_path / "w")
    load_file(model, tmp_path / "w")
    assert equal(model, state)
