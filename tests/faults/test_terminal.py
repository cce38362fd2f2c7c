"""Names and encodings: what is printed or shown is text, whatever a name contains and whoever reads it."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console

from synthkd.compression import predict
from synthkd.compression.predict import Prediction
from synthkd.data.read.samples import open_samples
from synthkd.data.written.card import card
from synthkd.models import build, save
from synthkd.pipelines.cli import main
from synthkd.reports.page import drawing, render
from synthkd.settings import ZooModel
from synthkd.system.text import one_line, printable
from synthkd.training.display import Display
from synthkd.types import ImageSpec

RED = "\x1b[31mred\x1b[0m\r\x9b2J\u202e"

EVALUATE = """
import sys, warnings
warnings.simplefilter("ignore")
from synthkd.pipelines.cli import main
sets = ["generated", "real=generated", "train=generated", "holdout=generated", "skip_bad=1", "cache=null"]
network = ["teacher={kind: load, model: teacher}", "subsets=2", "subset_size=5", "splits=2", "device=cpu"]
for encoding in sys.argv[1:]:
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding=encoding, errors="strict")
    assert main(["evaluate", *sets, *network, f"out={encoding}"]) == 0
    sys.stdout.reconfigure(encoding=encoding, errors="strict")
    assert main(["evaluate", "caf\\u00e9\\u2192", *sets[1:], *network]) == 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images under names that are no UTF-8 and hold an escape sequence, one of them damaged."""
    (tmp_path / "generated" / "0").mkdir(parents=True)
    for number in range(6):
        path = os.fsencode(tmp_path / "generated" / "0") + b"/\xff\x1b[31m%d.png" % number
        with open(path, "wb") as file:
            Image.effect_noise((8, 8), 50 + number).save(file, "PNG")
    with open(os.fsencode(tmp_path / "generated" / "0") + b"/bad\xfe\n.png", "wb") as file:
        file.write(b"no image")
    torch.manual_seed(0)
    save(build(ZooModel(arch="convnet", width=4), ImageSpec(1, 8, 8, 3)).eval(), tmp_path / "teacher", {})
    return tmp_path


def test_an_evaluation_ends_well_on_a_terminal_of_any_encoding(folder: Path) -> None:
    encodings = ["ascii", "latin-1", "cp1252"]
    command = [sys.executable, "-c", EVALUATE, *encodings]
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert b"\x1b" not in done.stdout + done.stderr
    assert b"Traceback" not in done.stderr
    assert b"caf?? does not exist" in done.stderr
    assert all((folder / encoding / "report.html").read_text(encoding="utf-8") for encoding in encodings)


def test_a_damaged_file_is_named_in_one_line_whatever_its_name(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [
        str(folder / "generated"),
        f"real={folder / 'generated'}",
        f"teacher={{kind: load, model: {folder / 'teacher'}}}",
    ]
    assert main(["evaluate", *sets, "cache=null", "device=cpu", "--dry-run"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "0/bad\\udcfe\\n.png (not an image of a known format)" in line


def test_an_argument_that_is_no_utf_8_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "evaluate", "x\udcff", "real=a"]) == 2
    assert (
        capsys.readouterr().err
        == "error: generated.0: 'x\\udcff' is not UTF-8; rename it, or change into its folder (cd)\n"
    )
    assert main(["config", "show", "evaluate", "generated=[b]", "real=x\udcff"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: real: 'x\\udcff' is not UTF-8; rename it, or change into its folder (cd)"


def test_a_configuration_that_is_shown_reads_back_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["student={arch: mlp}", 'teacher={kind: load, model: "x\u200fy:z"}']
    assert main(["config", "show", "distill", *given]) == 0
    (tmp_path / "shown.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    assert main(["config", "show", "distill", str(tmp_path / "shown.yaml")]) == 0
    assert "x\u200fy:z" in capsys.readouterr().out


def test_predictions_are_lines_of_three_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [
        Prediction(Path(f"a\nb\t{RED}.png"), f"{RED}\ncat\t1.0", 0.5),
        Prediction(Path("\udcff.png"), "\udcfe", 1.0),
    ]
    monkeypatch.setattr(predict, "predict_files", lambda *_, **__: found)
    assert main(["predict", "model.onnx", "images"]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert [line.count("\t") for line in lines] == [2, 2, 0]
    assert "".join(lines).replace("\t", "").isprintable()


def test_errors_and_results_show_no_control_character(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "teach", f"{RED}=1"]) == 2
    assert main(["config", "show", "evaluate", f"generated=['{RED[:5]}']", "real=b"]) in (0, 2)
    assert main(["teach", str(tmp_path / f"{RED}.yaml")]) == 2
    captured = capsys.readouterr()
    assert (captured.out + captured.err).replace("\n", "").isprintable()
    assert "\\x1b[31mred" in captured.err


def test_progress_shows_no_control_character() -> None:
    written = io.StringIO()
    console = Console(file=written, width=200)
    with Display(10, f"distill {RED}\n", console=console) as display:
        display.update(1, f"phase {RED}\n", {f"loss {RED}\n": 1.0})
        display.message(f"note {RED}")
    lines = written.getvalue().splitlines()
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)


def test_what_is_printable_stays_as_it_is() -> None:
    for text in ("T-shirt/top", "café → naïve", "日本語", "a\tb\nc", "🙂", "x ± 0.1 · y"):
        assert printable(text) == text
    assert one_line("a\tb\nc") == "a\\tb\\nc"
    assert printable(RED) == "\\x1b[31mred\\x1b[0m\\r\\x9b2J\\u202e"


def test_names_of_files_are_told_of_in_one_line(tmp_path: Path) -> None:
    (tmp_path / f"cat{RED}").mkdir()
    Image.new("RGBA", (8, 8)).save(tmp_path / f"cat{RED}" / "a\nb.png")
    (note,) = open_samples(tmp_path).notes
    assert note.isprintable()
    assert "a\\nb.png" in note


HOSTILE = "<script>alert(1)</script> | a `b` *c* [d](javascript:e)\n---\nlicense: mit\n# head \x1b[31m\udcff"


def test_a_card_shows_names_as_text_and_its_front_matter_is_yaml() -> None:
    about = {
        "name": "set",
        "count": 2,
        "class_names": [HOSTILE, "sea_lion"],
        "format": "folder",
        "synthkd": "1",
        "seed": 0,
        "teacher": {"arch": HOSTILE, "parameters": 3, "trained_on": HOSTILE, "sha256": "0"},
        "counts": [1, 1],
        "scores": {
            "agreement_per_class": [0.5, None],
            "agreement_interval": [0.0, 1.0],
            "agreement": 0.5,
            "confidence": 0.5,
            "vendi": None,
            "exact_duplicates": 0,
            "rejected": {},
            "tried": 2,
        },
        "filters": {"confidence": None, "copies": None},
        "real_images_used": 0,
        "generator": {"kind": "inversion"},
    }
    text = card(about, f"path: '{HOSTILE}\n\n  ```\n\n  <script>'\n")
    text.encode("utf-8", errors="surrogatepass")
    _, front, rest = text.split("---\n", 2)
    values = yaml.safe_load(front)
    assert values["license"] == "unknown"
    names = values["configs"][0]["features"][2]["dtype"]["class_label"]["names"]
    assert names["0"] == one_line(HOSTILE)
    before, fence, recipe = rest.partition("````yaml\n")
    assert fence
    assert recipe.count("````") == 1
    assert "<" not in before.replace("\\<", "")
    table = [line for line in before.splitlines() if line.startswith("| ")]
    assert [line.replace("\\|", "").count("|") for line in table] == [4, 4, 4]
    assert table[2].startswith("| sea_lion |")


def test_a_page_is_utf_8_and_a_drawing_of_others_is_text() -> None:
    shapes = '<svg viewBox="0 0 1 1"><g><path d="M0 0"/><use xlink:href="#a"/><text x="1">0.5</text></g></svg>'
    assert drawing(shapes) == shapes
    for active in (
        "<script>alert(1)</script>", '<image href="x"/>', '<path onload="x"/>', '<use href="http://x"/>',
        '<g style="background:url(https://x)"/>', '<path fill="url(https://x)"/>', '<path mask="image-set(\'//x\')"/>',
        '<path fill="&#117;rl(https://x)"/>', '<path fill="url&lpar;//x)"/>', r'<path fill="\75rl(https://x)"/>',
    ):  # fmt: skip
        assert "<" not in drawing(f"<svg>{active}</svg>")
    page = render("page.html.jinja", name=f"{HOSTILE}").decode("utf-8")
    assert "<script>alert(1)" not in page
    assert "\\udcff" in page
