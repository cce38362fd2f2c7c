"""TorchScript archives and programs of torch.export as teachers: their layers, their trust, and what is refused."""

from __future__ import annotations

import copy
import io
import json
import logging
import os
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from synthkd.errors import ConfigError, ModelError
from synthkd.imports import allowing
from synthkd.models import Classifier, build_model, fold_batch_norm, head, inherit, load_model, probe, stages
from synthkd.models.programs import Script, opened
from synthkd.settings import LoadedModel, ZooModel
from synthkd.taps import has_statistics, observe
from synthkd.types import ImageSpec

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit")
SHAPE = (3, 8, 8)
SPEC = ImageSpec(*SHAPE, 5)
IMAGES = torch.linspace(0, 1, 4 * 3 * 8 * 8).view(4, *SHAPE).sin()
ANY_NUMBER = ({0: torch.export.Dim("n")},)


class Net(nn.Module):
    """Maps, vectors, a branch, a loop over layers, sizes of the images."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.more = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.Conv2d(4, 4, 1)])
        self.norm = nn.BatchNorm1d(64)
        self.dropout = nn.Dropout()
        self.fc = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.more:
            x = torch.relu(layer(x)) + x
        if self.training:
            x = x * 2
        return self.fc(self.dropout(self.norm(x.view(x.size(0), -1))))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.fc = nn.Linear(192, 5)

    def forward(self, x: Tensor) -> Tensor:
        if float(x.sum()) > 1e9:
            x = -x
        return self.fc(self.norm(x).flatten(1))


def trained(network: nn.Module) -> nn.Module:
    """The network with BatchNorm statistics of its own."""
    for _ in range(3):
        network.train()(torch.rand(8, *SHAPE))
    return network.eval()


def scripted(network: nn.Module, path: Path) -> None:
    torch.jit.save(torch.jit.script(network), path)


def traced(network: nn.Module, path: Path) -> None:
    torch.jit.save(torch.jit.trace(network, IMAGES), path)


def exported(network: nn.Module, path: Path) -> None:
    torch.export.save(torch.export.export(network, (IMAGES,), dynamic_shapes=ANY_NUMBER), path)


def decomposed(network: nn.Module, path: Path) -> None:
    program = torch.export.export(network, (IMAGES,), dynamic_shapes=ANY_NUMBER)
    torch.export.save(program.run_decompositions(), path)


FORMS = {"scripted": scripted, "traced": traced, "exported": exported, "decomposed": decomposed}


def settings(path: Path, **more: object) -> LoadedModel:
    return LoadedModel(kind="load", model=str(path), size=8, classes=5, **more)


def teacher(path: Path, **more: object) -> Classifier:
    with allowing(folders=[path.parent]):
        return load_model(settings(path, **more))


@pytest.mark.parametrize("form", FORMS)
def test_a_program_becomes_the_network_that_it_was(form: str, tmp_path: Path) -> None:
    network, path = trained(Net()), tmp_path / "net.weights"  # the content decides, not the ending
    if form == "scripted":
        network.train()  # a scripted program can still be put into eval mode
    FORMS[form](network, path)
    network.eval()
    loaded = teacher(path, mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5))
    images = IMAGES.clone().requires_grad_()
    logits = loaded(images)
    assert torch.allclose(logits, network(loaded.normalize(IMAGES)), atol=1e-5)
    assert torch.allclose(loaded(IMAGES[:1]), logits[:1], atol=1e-5)
    (gradient,) = torch.autograd.grad(logits.sum(), images)
    assert float(gradient.abs().sum()) > 0
    own = {path: m for path, m in network.named_modules() if has_statistics(m)}
    found = observe(loaded, IMAGES, statistics=True).statistics
    assert len(found) == len(own) == 2
    for statistics, norm in zip(found.values(), own.values(), strict=True):
        assert torch.equal(statistics.running_mean, norm.running_mean)
    assert loaded.notes == ("a TorchScript program" if form in ("scripted", "traced") else "a program of torch.export",)
    contract = probe(loaded, gradients=True)
    assert (contract.batch_norm_layers, contract.parameters) == (2, sum(p.numel() for p in network.parameters()))
    assert head(loaded) == "body.fc"


@pytest.mark.parametrize("form", ["scripted", "exported"])
def test_everything_that_is_done_to_teachers_works_on_programs(form: str, tmp_path: Path) -> None:
    network, path = trained(Net()), tmp_path / "net.pt"
    FORMS[form](network, path)
    loaded = teacher(path)
    folded = fold_batch_norm(loaded)
    assert sum(map(has_statistics, folded.modules())) < sum(map(has_statistics, loaded.modules()))
    assert torch.allclose(folded(IMAGES), loaded(IMAGES), atol=1e-5)
    assert copy.deepcopy(loaded)(IMAGES).shape == (4, 5)
    assert stages(loaded)
    student = Net()
    assert inherit(student, loaded.body).parameters == sum(p.numel() for p in student.parameters())
    assert torch.equal(student.fc.weight, network.fc.weight)


@pytest.mark.parametrize("form", FORMS)
def test_the_stages_of_a_program_end_after_the_additions_of_residual_blocks(form: str, tmp_path: Path) -> None:
    own = build_model(ZooModel(arch="resnet", depth=8, width=4), SPEC)
    trained(own.body)
    FORMS[form](own.body, tmp_path / "net.pt")
    loaded = teacher(tmp_path / "net.pt")
    found, expected = (observe(model, IMAGES, stages(model)).features for model in (loaded, own))
    assert len(found) == len(expected) == 3
    for ours, theirs in zip(found.values(), expected.values(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_program_that_cannot_be_seen_through_runs_as_it_is(tmp_path: Path) -> None:
    network = trained(Branching())
    scripted(network, tmp_path / "net.pt")
    loaded = teacher(tmp_path / "net.pt")
    assert loaded.notes == (
        "a TorchScript program, run as it is, since a branch depends on its images: its layers and BatchNorm "
        "statistics cannot be seen",
    )
    assert torch.allclose(loaded(IMAGES), network(IMAGES), atol=1e-6)
    assert probe(loaded, gradients=True).batch_norm_layers == 0
    folded = fold_batch_norm(loaded)
    for count in (4, 1, 3, 2):  # the executor of TorchScript compiles for what it has seen
        images = IMAGES[:count].clone().requires_grad_()
        folded(images).sum().backward()
        assert torch.allclose(folded(images), network(IMAGES[:count]), atol=1e-6)
        assert images.grad is not None
    assert inherit(Branching(), loaded.body).parameters == 0


@pytest.mark.parametrize("form", ["scripted", "exported"])
def test_a_program_runs_only_if_it_is_trusted(form: str, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    FORMS[form](trained(Net()), path)
    recipe = {"teacher": {"model": str(path)}}
    refused = r"net\.pt is a program of (TorchScript|torch\.export), .*nothing of it was run.*trust=true, beside"
    for outer in (allowing(), allowing(recipe), allowing({}, programs=True)):
        with outer, pytest.raises(ModelError, match=refused):
            load_model(settings(path))
    with pytest.raises(ModelError, match=refused):
        load_model(settings(path))
    with allowing(recipe, programs=True):
        assert load_model(settings(path)).spec == SPEC
        with pytest.raises(ModelError, match=f"trust={tmp_path}"):  # another file's word is not the recipe's
            load_model(settings(path), source=tmp_path / "config.yaml")
    with allowing(folders=[tmp_path]):
        assert load_model(settings(path), source=tmp_path / "config.yaml").spec == SPEC


@pytest.mark.parametrize("form", ["traced", "exported"])
@pytest.mark.filterwarnings("ignore")
def test_a_program_in_training_mode_is_refused(form: str, tmp_path: Path) -> None:
    FORMS[form](Net().train(), tmp_path / "net.pt")
    with pytest.raises(ModelError, match=r"net\.pt: its BatchNorm is in training mode; call model\.eval\(\) before"):
        teacher(tmp_path / "net.pt")


def test_a_fixed_number_of_images_is_refused(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(Net().eval(), (IMAGES,)), tmp_path / "net.pt2")
    with pytest.raises(ModelError, match=r"net\.pt2 takes 4 images at once.*dynamic batch dimension: torch\.export"):
        teacher(tmp_path / "net.pt2")
    with pytest.raises(ModelError, match=r"the teacher takes 4 images at once"):
        opened(torch.export.export(Net().eval(), (IMAGES,)).module(), SHAPE, "the teacher")


def test_several_inputs_are_refused(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x.flatten(1)[:, :5] + y

    exported_two = torch.export.export(Two(), (IMAGES, torch.zeros(5)))
    torch.export.save(exported_two, tmp_path / "two.pt2")
    with pytest.raises(ModelError, match="takes 2 inputs"):
        teacher(tmp_path / "two.pt2")


class _Malicious:
    """Unpickling this makes a directory."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


def replaced(path: Path, end: str, content: bytes) -> None:
    """Replace the member of a zip archive whose name ends so."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in members if name.endswith(end))
    with zipfile.ZipFile(path, "w") as archive:
        for member, bytes_ in {**members, name: content}.items():
            archive.writestr(member, bytes_)


def own_program() -> nn.Module:
    """What a function of the user returns: a program with weights of its own."""
    torch.manual_seed(0)
    return torch.jit.script(trained(Net()))  # type: ignore[no-any-return]


def test_a_program_that_a_function_returns_becomes_a_network_too() -> None:
    settings = LoadedModel(kind="load", model="tests.models.test_programs:own_program", size=8, classes=5)
    loaded = load_model(settings)
    assert any(map(has_statistics, loaded.modules()))
    assert torch.allclose(loaded(IMAGES), own_program()(IMAGES), atol=1e-5)


def test_not_even_a_trusted_program_runs_a_pickle(tmp_path: Path) -> None:
    path, target = tmp_path / "net.pt2", tmp_path / "ran"
    exported(Net().eval(), path)
    evil = io.BytesIO()
    torch.save((((_Malicious(target),), {}),), evil)
    replaced(path, "sample_inputs/model.pt", evil.getvalue())
    with pytest.raises(
        ModelError, match=r"net\.pt2 holds a pickle that wants to run more than tensors \(.*model\.pt\)"
    ):
        teacher(path)
    assert not target.exists()
    logging.disable()  # torch 2.11 logs this with a message that cannot be formatted
    try:
        torch.export.load(path)
    finally:
        logging.disable(logging.NOTSET)
    assert target.exists()  # so the refusal above was no accident


def test_a_pickled_weight_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    exported(Net().eval(), path)
    config = {"config": {"fc.weight": {"path_name": "weight_0", "use_pickle": True}}}
    replaced(path, "model_weights_config.json", json.dumps(config).encode())
    with pytest.raises(ModelError, match="holds a pickled object"):
        teacher(path)


@pytest.mark.parametrize(("form", "end"), [("scripted", "data.pkl"), ("exported", "models/model.json")])
def test_damaged_programs_end_in_one_line(form: str, end: str, tmp_path: Path) -> None:
    FORMS[form](Net().eval(), tmp_path / "net.pt")
    replaced(tmp_path / "net.pt", end, b"{")
    with pytest.raises(ModelError, match=r"net\.pt is not a readable program of") as caught:
        teacher(tmp_path / "net.pt")
    assert "\n" not in str(caught.value)


def test_keys_that_a_program_has_itself_and_files_that_are_no_networks(tmp_path: Path) -> None:
    scripted(Net().eval(), tmp_path / "net.pt")
    with pytest.raises(ConfigError, match=r"weights: .*net\.pt is a TorchScript program, which has its own"):
        load_model(settings(tmp_path / "net.pt", weights="w.pt"))
    with pytest.raises(ConfigError, match=r"options: .* leave options out"):
        load_model(settings(tmp_path / "net.pt", options={"a": 1}))
    with pytest.raises(ConfigError, match="can be a teacher, but not a network to train"):
        build_model(settings(tmp_path / "net.pt"), SPEC)
    torch.save(Net().state_dict(), tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"w\.pt is a pickle, not a network; name the network .* file as `weights`"):
        load_model(settings(tmp_path / "w.pt"))
    (tmp_path / "page").write_text("<html>")
    with pytest.raises(ConfigError, match="is a page of HTML or XML, not a network; download the file itself"):
        load_model(settings(tmp_path / "page"))
    with pytest.raises(ConfigError, match="needs `size` and `classes`"):
        load_model(LoadedModel(kind="load", model=str(tmp_path / "net.pt")))


def test_programs_in_memory_are_opened_and_other_networks_are_not() -> None:
    network = trained(Net())
    assert opened(network, SHAPE, "it") is network
    for program in (
        torch.jit.script(network),
        torch.jit.trace(network, IMAGES),
        torch.export.export(network, (IMAGES,), dynamic_shapes=ANY_NUMBER).module(),
    ):
        found = opened(copy.deepcopy(program), SHAPE, "it").eval()
        assert not isinstance(found, Script)
        assert torch.allclose(found(IMAGES), network(IMAGES), atol=1e-5)
        assert sum(map(has_statistics, found.modules())) == 2
