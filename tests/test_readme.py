"""What README.md, CONTRIBUTING.md and docs/ show: commands run, code compiles, names and links lead somewhere."""

import ast
import importlib
import inspect
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from PIL import Image
from torch import nn

from synthkd.compression import export_onnx
from synthkd.generators.build import build_generator
from synthkd.generators.settings import PythonGenerator
from synthkd.models import build
from synthkd.pipelines import cli
from synthkd.pipelines.config import CompressConfig, DistillConfig
from synthkd.rng import Rows
from synthkd.settings import ZooModel
from synthkd.settings.load import load_config
from synthkd.types import ImageSpec

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

SHELLS = {"sh", "bash", "shell", "console"}
PICTURES = ("The student ", "teacher ──►", "few real images ──►", "synthkd/  ")
"""How fenced blocks begin that show output or a drawing; any other block without a language is one of commands."""
TO_COME: set[str] = set()
"""Verbs that are announced and do not exist yet."""
PLACEHOLDERS = {"RECIPE", "RUN", "DIR", "my_teacher", "part0.safetensors", "all.safetensors"}
"""Words that stand for something of the reader's; a command with one of them is only parsed."""


def make_net() -> nn.Module:
    """The network that the README's `my_package.nets` stands for."""
    return nn.Sequential(nn.Conv2d(3, 8, 3, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 10))


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, the line it begins at, its language and its text."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_commands(self) -> bool:
        return self.language in SHELLS or (not self.language and not self.text.startswith(PICTURES))


@dataclass(frozen=True)
class Command:
    """A command with the output that is shown below it, if any is."""

    where: str
    words: tuple[str, ...]
    output: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.where}: {shlex.join(self.words)}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\S*)[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(page, text.count("\n", 0, m.start()) + 1, m[1], m[2]) for m in found]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def spans(page: Path) -> list[str]:
    """What stands between backquotes in a line."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def commands(block: Block) -> Iterator[Command]:
    """The commands of a block: every line, or the lines after `$ `, below which their output stands."""
    lines = block.text.splitlines()
    prompts = any(line.startswith("$ ") for line in lines)
    for number, line in enumerate(lines):
        if line.strip() and (line.startswith("$ ") or not prompts):
            rest = lines[number + 1 :] if prompts else []
            end = next((n for n, other in enumerate(rest) if other.startswith("$ ")), len(rest))
            words = shlex.split(line.removeprefix("$ "), comments=True)
            yield Command(f"{block.page.name}:{block.line + 1 + number}", tuple(words), tuple(rest[:end]))


BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = [command for block in BLOCKS if block.is_commands for command in commands(block)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
YAML = [block for block in BLOCKS if block.language == "yaml"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the README's `synthkd generate` leaves, but of a few images of a teacher that learned next to nothing."""
    out = tmp_path_factory.mktemp("generated") / "run"
    quick = ["teacher.training.steps=2", "rounds=1", "per_class=3", "filters.confidence=null", "device=cpu"]
    assert run(["generate", "generate_digits", *quick, f"out={out}"]) == 0
    return out


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as `synthkd compress` exports it."""
    path = tmp_path_factory.mktemp("exported") / "student.onnx"
    export_onnx(build(ZooModel(arch="mlp", width=4, depth=1), ImageSpec(1, 8, 8, 10)), path)
    return path


@pytest.fixture
def folder(tmp_path: Path, dataset: Path, exported: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A reader's folder: the teacher that the README speaks of, and every YAML block that names its file."""
    (tmp_path / "runs/handover/export").mkdir(parents=True)
    shutil.copy(exported, tmp_path / "runs/handover/export/student.int8.onnx")
    for name in ("runs/digits-data", "runs/distill/digits", "small"):
        shutil.copytree(dataset, tmp_path / name)
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text("")
    (tmp_path / "my_package" / "nets.py").write_text(f"from torch import nn\n\n\n{inspect.getsource(make_net)}")
    torch.save(make_net().state_dict(), tmp_path / "teacher.pt")
    public = ZooModel(arch="resnet", depth=20, width=16, shortcut="pad")
    torch.save(build(public, ImageSpec(3, 32, 32, 10)).body.state_dict(), tmp_path / "resnet20-12fca82f.th")
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8)
    for name in ("generated", "photos"):
        (tmp_path / name).mkdir()
        for number, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / name / f"{number}.png")
    shutil.make_archive(str(tmp_path / "a"), "zip", tmp_path / "photos")
    np.savez(tmp_path / "b.npz", images=images)
    for block in YAML:
        if named := re.match(r"# (\S+\.yaml)\n", block.text):
            (tmp_path / named[1]).write_text(block.text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("my_package", "my_package.nets"):
        sys.modules.pop(name, None)


def contents(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)


def targets() -> set[str]:
    """What `make` can be asked for."""
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def run(words: Sequence[str]) -> int | str | None:
    try:
        return cli.main(words)
    except SystemExit as exit_:  # argparse's own complaints, --help and --version
        return exit_.code


def test_there_is_something_to_check() -> None:
    assert len(PAGES) > 2
    assert {command.words[0] for command in COMMANDS} >= {"make", "synthkd"}
    assert PYTHON
    assert YAML
    for page in PAGES:
        fences = re.findall(r"^\s*(?:```|~~~)", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) == 2 * len(blocks(page)), f"{page.name}: a block that these tests do not see"


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_is_of_a_known_sort(block: Block) -> None:
    assert block.language in {"", "python", "yaml", *SHELLS}, "teach this test to check such blocks"


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_works(command: Command, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = command.words
    match words[words.index("-m") + 1 :] if words[0] == "torchrun" else words:
        case ("make", *words):
            assert {word for word in words if "=" not in word} <= targets()
        case ("pip", "install", requirement):
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            assert requirement in {f"synthkd[{extra}]" for extra in extras}
        case ("python", "-m", module, *_):
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file()
        case ("synthkd", *words) if PLACEHOLDERS & {word.rpartition("=")[2] for word in words}:
            cli._parser().parse_known_args(words)
        case ("synthkd", *words):
            dry = ["--dry-run"] if words[0] in cli.VERBS and "--dry-run" not in words else []
            before = contents(folder)
            code = run([*words, *dry])
            shown = capsys.readouterr()
            if command.output:
                assert tuple((shown.out + shown.err).splitlines()) == command.output
            else:
                assert code == 0, shown.err
            assert contents(folder) == before
        case _:
            pytest.fail(f"{command}: teach this test to check such a command")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_verb_and_target_in_the_prose_exists_or_is_announced(page: Path) -> None:
    verbs = {match[1] for span in spans(page) if (match := re.search(r"(?:^|-m )synthkd ([a-z]+)", span))}
    known = set(re.findall(r"^    ([a-z]+)", cli._parser().format_help(), re.MULTILINE))
    assert not TO_COME & known, "a verb that was to come is there: take it from the list above"
    assert verbs <= known | TO_COME
    assert {span.split()[1] for span in spans(page) if span.startswith("make ")} <= targets()


@pytest.mark.parametrize("block", YAML, ids=str)
def test_yaml_is_a_configuration_or_a_section_of_one(block: Block, tmp_path: Path) -> None:
    written = yaml.safe_load(block.text)
    missing = {"teacher": "{kind: load, model: t}", "student": "{arch: mlp}"}
    (tmp_path / "block.yaml").write_text(block.text)
    if "search" in written:
        del missing["student"]
    rest = [f"{key}={value}" for key, value in missing.items() if key not in written]
    of_compress = {"flow", "search", "distillation"} & set(written)
    load_config(CompressConfig if of_compress else DistillConfig, tmp_path / "block.yaml", rest)


def test_the_generator_of_the_page_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = (block.text for block in PYTHON if block.text.startswith("# my_generator.py\n"))
    (tmp_path / "my_generator.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_generator", raising=False)
    settings = PythonGenerator(kind="python", target="my_generator:Stripes", options={"batch_size": 6})
    teacher = build(ZooModel(arch="convnet", width=4), ImageSpec(3, 8, 8, 4)).eval()
    generator = build_generator(settings, teacher, 0, Accelerator(cpu=True))
    assert generator.round(1, 0.5).images.max() > 0
    labels = torch.arange(4)
    whole = generator.sample(labels, 0.5, Rows(0, "test"))
    assert torch.equal(whole[2:], generator.sample(labels[2:], 0.5, Rows(0, "test", 2)))


EXERCISES = {
    re.sub(r"^(?=generators|pipelines)", "synthkd.", match[1].replace("/", "."))
    for block in PYTHON
    if (match := re.match(r"# (\S+)\.py\n", block.text))
}
"""Modules that a block of CONTRIBUTING.md is the source of; `tests/test_exercises.py` writes and imports them."""


def resolve(dotted: str) -> object:
    """The module or attribute of a dotted name; None for one of an exercise."""
    if {dotted, dotted.rpartition(".")[0]} & EXERCISES:
        return None
    try:
        return importlib.import_module(dotted)
    except ImportError:
        parent, _, name = dotted.rpartition(".")
        if not parent:
            raise
        return getattr(resolve(parent), name)


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_compiles_and_its_imports_resolve(block: Block) -> None:
    tree = ast.parse(block.text, str(block))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.partition(".")[0] == "synthkd":
                resolve(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_name_of_the_package_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    names = set(re.findall(r"\bsynthkd(?:\.[A-Za-z_]\w*)+", text))
    for module, imported in re.findall(r"from (synthkd[\w.]*) import ([\w, ]+)", text):
        names |= {f"{module}.{name.strip()}" for name in imported.split(",")}
    for name in names:
        resolve(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_and_images_exist(page: Path) -> None:
    targets = re.findall(r"!?\[[^\]]*\]\(([^)\s]+)[^)]*\)", prose(page))
    inside = {target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:", target)}
    assert {target for target in inside if target and not (page.parent / target).exists()} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_of_the_repository_that_are_named_exist(page: Path) -> None:
    folders = "benchmarks|configs|docs|generators|pipelines|synthkd|tests"
    named = {m for span in spans(page) for m in re.findall(rf"(?<![\w/.-])(?:{folders})/[\w/]+\.\w+", span)}
    assert {name for name in named if not (ROOT / name).is_file()} == set()


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.stem)
def test_no_page_holds_the_marks_of_a_merge(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith(("<<<<<<<", ">>>>>>>")) or line == "======="] == []
