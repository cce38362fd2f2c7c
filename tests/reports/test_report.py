"""A report tells what the files of a run directory hold, and nothing that was not measured."""

import base64
import io
import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from synthkd.errors import CheckpointError
from synthkd.reports.figures import interval_chart
from synthkd.reports.files import read_run
from synthkd.reports.grids import save_grid
from synthkd.reports.headline import headline
from synthkd.reports.page import count, duration, interval, milliseconds, percent, size
from synthkd.reports.report import write_report
from synthkd.reports.results import ModelResult, StudentResult, from_json
from synthkd.reports.run import spread
from synthkd.training.monitor import Monitor

SCRIPT = "<script>alert(1)</script>"
CHROMIUM = shutil.which("chromium")
CHROMIUM_FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
]  # fmt: skip


def curve(start: float, end: float, part: float) -> float:
    """From start to end, fast first."""
    return end + (start - end) * math.exp(-5 * part)


def fake_log(run: Path, steps: int, is_tested: bool = True) -> None:
    """A log as a run of 300 generator-and-student steps and 60 student steps leaves it, resumed once."""
    noise = np.random.default_rng(0)
    monitor = Monitor(run)
    for step in range(5, steps + 1, 5):
        part, phase = step / 360, "joint" if step <= 300 else "refine"
        values = {"student/loss": curve(2.2, 0.25, part) * noise.uniform(0.85, 1.15)}
        values["student/soft_labels"] = values["student/loss"] * 0.92
        values["student/learning_rate"] = 2e-3 * (1 + math.cos(math.pi * part)) / 2
        if phase == "joint":
            values["generator/loss"] = curve(60, 9, part) * noise.uniform(0.8, 1.2)
            values["generator/batch_norm"] = 30 * 10 ** (-3 * part) * noise.uniform(0.8, 1.2)
            values["generator/one_hot"] = curve(2.0, 0.3, part) * noise.uniform(0.7, 1.3)
            values["generator/adversarial"] = float("nan") if step == 50 else -curve(0.1, 1.4, part)
            values["difficulty"] = min(0.9, 0.3 * 1.2 ** (step // 50))
        monitor.log(step, values, phase)
        if step % 30 == 0:
            evaluated = {"fresh/agreement": curve(0.2, 0.97, part)}
            if is_tested:
                evaluated |= {"test/accuracy": curve(0.12, 0.968, part), "test/agreement": curve(0.15, 0.975, part)}
            monitor.log(step, evaluated, phase)
        if step == 150:
            monitor.rewind(150)


def digit_grid(run: Path, step: int, sharpness: float) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    rows = [np.flatnonzero(digits.target == label)[:3] for label in range(10)]
    images = torch.tensor(digits.images[np.stack(rows, axis=1).ravel()] / 16, dtype=torch.float32)[:, None]
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(step))
    grid = sharpness * images + (1 - sharpness) * noise
    save_grid(grid, 10, run / "samples" / f"step_{step:06d}.png", [str(label) for label in range(10)])


CONFIG = {
    "name": "digits",
    "seed": 0,
    "teacher": {"kind": "train", "data": {"kind": "digits"}, "model": {"kind": "zoo", "arch": "resnet", "width": 16}},
    "student": {"kind": "zoo", "arch": "resnet", "width": 8},
    "test": {"kind": "digits"},
    "phases": [{"kind": "joint", "steps": 300, "every": 15}, {"kind": "refine", "steps": 60}],
}


def result_of_distill() -> dict:
    return {
        "schema": 1, "job": "distill", "name": "digits", "seed": 0, "seconds": 123.4,
        "finished": "2026-11-21 04:12:09", "version": "0.1.0", "real_images_used": 0,
        "teacher": {"accuracy": 0.9861, "accuracy_interval": [0.9679, 0.9941], "n": 360, "parameters": 78042,
                    "bytes": 316000, "latency_ms": 0.412, "arch": "resnet width 16 depth 8"},
        "student": {"accuracy": 0.9694, "accuracy_interval": [0.9462, 0.9828], "n": 360, "agreement": 0.9722,
                    "agreement_interval": [0.9496, 0.9848], "agreement_on": "test", "agreement_n": 360,
                    "parameters": 19770, "bytes": 82400, "latency_ms": 0.198, "arch": "resnet width 8 depth 8"},
        "ratio": {"accuracy": 0.9831, "parameters": 0.2533},
        "data": {"class_names": [str(digit) for digit in range(10)], "spec": "1x8x8 images, 10 classes"},
        "cost": {"seconds": {"teacher": 21.0, "distill": 96.1, "evaluate": 6.3, "total": 123.4}, "steps": 360,
                 "images_generated": 12800, "peak_memory_bytes": 812_000_000},
        "hardware": {"cpu": "AMD EPYC 7B13", "cores": 2, "threads": 2, "gpu": None, "torch": "2.15.0",
                     "python": "3.13.5", "platform": "Linux-6.12-x86_64"},
        "alarms": [], "interrupted": 1,
    }  # fmt: skip


def fake_run(run: Path, is_tested: bool = True, grids: int = 8) -> Path:
    """The directory of a finished distillation of the digits."""
    fake_log(run, 360, is_tested)
    result, config = result_of_distill(), dict(CONFIG)
    if not is_tested:
        config["test"] = None
        for model in ("teacher", "student"):
            result[model] |= {"accuracy": None, "accuracy_interval": None, "n": None}
        del result["ratio"]["accuracy"]
        result["student"] |= {"agreement_on": "fresh synthetic samples", "agreement_n": 2000}
        result["alarms"] = [
            {"name": "class_imbalance", "message": "class 7 is 2.1 % of the samples; look at its column in the grids",
             "value": 0.021, "threshold": 0.05}
        ]  # fmt: skip
    for index in range(grids):
        digit_grid(run, 50 * index, 0.15 + 0.1 * index)
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (run / "result.json").write_text(json.dumps(result))
    return run


def text_of(path: Path) -> str:
    """What a reader sees: text outside of styles, whitespace collapsed, no-break spaces as spaces."""

    class Words(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.words: list[str] = []
            self.hidden = False

        def handle_starttag(self, tag: str, _: list) -> None:
            assert tag != "script"
            self.hidden = tag == "style"

        def handle_data(self, data: str) -> None:
            if not self.hidden:
                self.words.append(data)

    words = Words()
    words.feed(path.read_text(encoding="utf-8"))
    return " ".join(" ".join(words.words).split())


def test_report_tells_the_outcome_of_a_distillation(tmp_path):
    path = write_report(fake_run(tmp_path))
    assert path == tmp_path / "report.html"
    text = text_of(path)
    assert (
        "The student keeps 98.3 % of its teacher’s accuracy at 25.3 % of its parameters and never saw a real image."
    ) in text
    for part in (
        "95 % interval 94.6–98.3 %, n = 360", "19,770", "78,042", "82.4 kB", "0.198 ms", "0.253 ×",
        "No alarms raised.", "reported only, never used to choose anything", "1 min 36 s", "812 MB", "AMD EPYC 7B13",
        "arch: resnet", "resumed from step 150", "phases: joint, refine from step 305",
        "run an audit before you rely on it", "6 of 8 grids", "import synthkd",
    ):  # fmt: skip
        assert part in text, part
    order = ["Teacher and student", "No alarms", "Curves", "Samples over time", "Cost", "Hardware", "Configuration",
             "Use the student", "Before you rely"]  # fmt: skip
    assert sorted(order, key=text.index) == order


def test_report_is_self_contained(tmp_path):
    page = write_report(fake_run(tmp_path)).read_text()
    code = re.sub(r"base64,[^\"]+", "", page)
    assert not re.search(r"https?:|//[a-z]|<script|<link|@import|url\((?!#)", code)
    sources = re.findall(r'src="([^"]{40})', page)
    assert len(sources) == 6
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    first = Image.open(io.BytesIO(base64.b64decode(re.search(r'base64,([^"]+)"', page)[1])))
    assert first.size == Image.open(tmp_path / "samples" / "step_000000.png").size
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_same_run_gives_the_same_report(tmp_path):
    first = write_report(fake_run(tmp_path, grids=1)).read_bytes()
    assert write_report(tmp_path).read_bytes() == first


def test_without_test_data_the_accuracy_is_called_unknown(tmp_path):
    text = text_of(write_report(fake_run(tmp_path, is_tested=False)))
    assert "No real test data: accuracy is unknown" in text
    assert (
        "The student agrees with its teacher on 97.2 % of fresh synthetic samples, "
        "has 25.3 % of its teacher’s parameters and never saw a real image."
    ) in text
    assert "Class imbalance. class 7 is 2.1 % of the samples" in text
    assert "(measured 0.021, threshold 0.05)" in text
    assert "No alarms raised" not in text
    assert "keeps" not in text


def test_estimate_and_advice_have_their_place(tmp_path):
    run = fake_run(tmp_path, is_tested=False, grids=0)
    text = text_of(write_report(run))
    assert "Estimated" not in text
    assert "Advice" not in text
    estimate = {"agreement": 0.71, "agreement_interval": [0.6, 0.8], "runs": 20, "covered": 19}
    result = json.loads((run / "result.json").read_text()) | {"estimate": estimate, "advice": ["run < longer"]}
    (run / "result.json").write_text(json.dumps(result))
    text = text_of(write_report(run))
    assert "Estimated agreement with its teacher on real images 71.0 % 60.0–80.0 %" in text
    assert "an interval that held in 19 of 20 runs" in text
    assert "parameters, agrees with its teacher on an estimated 71.0 % of real images (60.0 % to 80.0 %)" in text
    assert "Advice run < longer" in text
    result["estimate"] |= {"accuracy": 0.68, "accuracy_interval": [0.57, 0.77], "teacher_accuracy": 0.9}
    (run / "result.json").write_text(json.dumps(result))
    text = text_of(write_report(run))
    assert "Estimated accuracy without test data 68.0 % 57.0–77.0 %" in text
    assert "parameters, is right on an estimated 68.0 % of real images (57.0 % to 77.0 %) and never saw" in text


def test_unfinished_run_says_so(tmp_path):
    fake_log(tmp_path, 200)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 205, "pha')
    text = text_of(write_report(tmp_path))
    assert "This run is not finished: 200 of 360 steps so far. The latest test accuracy is" in text
    assert "No real test data" not in text
    assert "No alarms raised so far." in text
    assert "Cost" not in text


def test_unfinished_run_shows_the_alarms_logged_so_far(tmp_path):
    Monitor(tmp_path).event(30, "the samples look alike", kind="alarm", name="collapse")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    text = text_of(write_report(tmp_path))
    assert "Collapse. the samples look alike (step 30)" in text
    assert "Nothing was logged yet." in text


def test_report_of_teach_has_no_student(tmp_path):
    monitor = Monitor(tmp_path)
    for step in range(10, 100, 10):
        monitor.log(step, {"teacher/loss": 1 / step, "test/accuracy": step / 100}, "teach")
    (tmp_path / "config.yaml").write_text("name: big\ntraining: {steps: 90}\n")
    assert "90 of 90 steps" in text_of(write_report(tmp_path))
    result = {"schema": 1, "job": "teach", "teacher": {"accuracy": 0.92, "accuracy_interval": [0.91, 0.93], "n": 10000}}
    (tmp_path / "result.json").write_text(json.dumps(result))
    text = text_of(write_report(tmp_path))
    assert "The teacher reaches 92.0 % accuracy" in text
    assert "95 % interval 91.0–93.0 %, n = 10,000" in text
    assert "tudent" not in text
    assert "Size of the weights not measured" in text


def test_report_of_a_private_generator_speaks_of_no_model(tmp_path):
    (tmp_path / "result.json").write_text(
        json.dumps({"job": "release", "real_images_used": 1294, "cost": {"seconds": {"generator": 9.5}, "rounds": 20}})
    )
    text = text_of(write_report(tmp_path))
    assert "synthkd · release" in text
    assert "The generator learned from noisy statistics of 1,294 private images." in text
    assert "Generator 9.5 s" in text
    assert "Rounds 20" in text
    assert not [word for word in ("eacher", "tudent", "accuracy", "synthkd.load") if word in text]


@pytest.mark.parametrize("result", [{}, {"job": "distill"}, {"job": "distill", "teacher": None, "student": {"n": "?"}}])
def test_absent_values_are_not_measured(tmp_path, result):
    (tmp_path / "result.json").write_text(json.dumps(result))
    text = text_of(write_report(tmp_path))
    assert "not measured" in text
    assert "None" not in text
    assert "Undefined" not in text


def test_numbers_that_are_not_finite_are_not_measured(tmp_path):
    (tmp_path / "result.json").write_text('{"job": "distill", "student": {"agreement": NaN, "parameters": 100}}')
    text = text_of(write_report(tmp_path))
    assert "The student was not compared with its teacher and saw an unknown number of real images." in text
    assert "nan" not in text.lower().split()


def test_text_of_others_is_escaped(tmp_path):
    Monitor(tmp_path).log(1, {f"student/{SCRIPT}": 1.0, "student/loss": 1.0}, SCRIPT)
    Monitor(tmp_path).log(2, {f"student/{SCRIPT}": 2.0, "student/loss": 2.0}, SCRIPT)
    Monitor(tmp_path).event(2, SCRIPT)
    result = result_of_distill()
    result["data"] = {"class_names": [SCRIPT], "spec": SCRIPT}
    result["alarms"] = [{"name": SCRIPT, "message": SCRIPT}]
    result["student"]["arch"] = result["name"] = result["hardware"]["cpu"] = SCRIPT
    result["student"]["agreement_on"] = SCRIPT
    result |= evaluated(teaching=SCRIPT)
    result["evaluations"]["transfer_efficiency"]["estimator"] = result["peers"][0]["arch"] = SCRIPT
    result["teachers"][0]["name"] = SCRIPT
    (tmp_path / "result.json").write_text(json.dumps(result))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"name": SCRIPT, "student": {}}))
    page = write_report(tmp_path).read_text()
    assert "<script" not in page.lower()
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 13


def test_real_images_are_counted_in_the_headline(tmp_path):
    result = result_of_distill() | {"real_images_used": 1200}
    del result["ratio"]
    (tmp_path / "result.json").write_text(json.dumps(result))
    said = headline(read_run(tmp_path)).replace("\N{NO-BREAK SPACE}", " ")
    assert said == (
        "The student keeps 98.3 % of its teacher’s accuracy at 25.3 % of its parameters and saw 1,200 real images."
    )


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (0, "never saw a real image."), (1, "saw 1 real image."), (1294, "saw 1,294 real images."),
        (None, "saw an unknown number of real images."),
    ],
)  # fmt: skip
def test_headline_of_a_dataset_says_what_its_generator_saw(tmp_path, images, said):
    result = result_of_distill() | {"teacher": None, "real_images_used": images}
    result["student"]["agreement_on"] = "held-out images of the dataset"
    (tmp_path / "result.json").write_text(json.dumps(result))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG | {"teacher": None, "generator": {"kind": "dataset"}}))
    assert headline(read_run(tmp_path)).replace("\N{NO-BREAK SPACE}", " ") == (
        "The student learned from the soft labels of a dataset, reaches 96.9 % accuracy on test data, agrees with the "
        f"labels of 97.2 % of held-out images of the dataset and {said}"
    )


def network(accuracy: float | None, **more: object) -> dict:
    interval = None if accuracy is None else [accuracy - 0.02, accuracy + 0.01]
    return {"accuracy": accuracy, "accuracy_interval": interval, "n": 360, "arch": "vit width 64", "parameters": 412345,
            "bytes": 1650000, "latency_ms": 0.75, **more}  # fmt: skip


def quality(trace: float, dimension: int, score: float) -> dict:
    return {"fisher_trace": trace, "feature_dimension": dimension, "relative_trace": 1.0, "relative_dimension": 1.0,
            "score": score}  # fmt: skip


def evaluated(**more: object) -> dict:
    """What a result says of evaluations, two peers and two teachers."""
    efficiency = {
        "value": 0.8721,
        "mutual_information": 2.0072,
        "teacher_entropy": 2.3015,
        "estimator": "soft",
        "n": 144,
    }
    return {
        "evaluations": {"every": 100, "accuracy": 0.97, "stability": 0.0042, "stability_of": 5,
                  "transfer_efficiency": efficiency, **more},
        "peers": [network(0.958), network(0.931)],
        "teachers": [network(0.98, name="teacher 1", quality=quality(1234.4, 31, 1.0), selected=12),
                     network(0.96, name="teacher 2", quality=quality(0.01234, 12, 0.155), selected=30)],
    }  # fmt: skip


def report_of(run: Path, more: dict, config: dict = CONFIG) -> str:
    """Text of the report of a finished distillation whose result holds more."""
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "result.json").write_text(json.dumps(result_of_distill() | more))
    return text_of(write_report(run))


@pytest.mark.parametrize(
    ("estimator", "named"),
    [
        ("soft", "plug-in estimate from both softmax outputs"),
        ("hard", "plug-in estimate from the most likely classes"),
        ("miller_madow", "Miller–Madow estimate from the most likely classes"),
        ("another", "another"),
    ],
)
def test_transfer_efficiency_names_its_estimator_and_its_images(tmp_path, estimator, named):
    evaluations = evaluated()["evaluations"]
    evaluations["transfer_efficiency"]["estimator"] = estimator
    text = report_of(tmp_path, {"evaluations": evaluations})
    assert "Knowledge-transfer efficiency η 0.872 I ÷ H = 2.007 ÷ 2.301 nats, n = 144" in text
    assert f"the share that the student’s answers tell too; {named}, at the last evaluation." in text
    assert "Stability 0.42 points standard deviation of the accuracy at the last 5 evaluations, 100 steps apart" in text


def test_what_was_not_measured_has_no_place_on_the_page(tmp_path):
    later = (
        "efficiency",
        "Stability",
        "evaluation",
        "peer",
        "The teachers",
        "Fisher",
        "3C",
        "What adapts",
        "teachers’",
    )
    old = report_of(tmp_path, {})
    none = {
        "evaluations": {
            "every": 100,
            "accuracy": None,
            "stability": None,
            "stability_of": 0,
            "transfer_efficiency": None,
        }
    }
    alone = {"teachers": [network(0.98, name="teacher 1", quality=None, selected=None)], "peers": []}
    assert report_of(tmp_path, none | alone) == old
    assert not [word for word in later if word in old]


def test_several_teachers_are_compared(tmp_path):
    text = report_of(tmp_path, evaluated())
    assert "The student keeps 98.3 % of its teachers’ accuracy and never saw a real image." in text
    assert (
        "Accuracy and agreement go by all teachers together; architecture, size and latency are those of the first"
        in text
    )
    space = "\N{NON-BREAKING HYPHEN}"
    assert f"Fisher trace Feature dimension 3C{space}Quality Chosen" in text
    assert "Teacher 1 vit width 64 98.0 % 96.0–99.0 %, n = 360 412,345 1.65 MB 0.75 ms 1,234 31 1.000 12 ×" in text
    assert "Teacher 2 vit width 64 96.0 % 94.0–97.0 %, n = 360 412,345 1.65 MB 0.75 ms 0.0123 12 0.155 30 ×" in text
    assert f"3C{space}Quality is 0.6 × Fisher trace + 0.4 × feature dimension" in text
    assert "a heuristic that orders these teachers among themselves" in text


def test_teachers_without_scores_and_choices_have_no_columns_for_them(tmp_path):
    teachers = [network(None, name=f"teacher {n}", quality=None, selected=None) for n in (1, 2)]
    text = report_of(tmp_path, {"teachers": teachers})
    assert "Teacher 2 vit width 64 not measured 412,345" in text
    assert not [word for word in ("Fisher", "Quality", "Chosen", "One teaches") if word in text]


@pytest.mark.parametrize(("teaching", "who"), [("student", "the student"), ("peer 2", "peer 2")])
def test_peers_stand_beside_the_student(tmp_path, teaching, who):
    text = report_of(tmp_path, evaluated(teaching=teaching))
    table = text[text.index("The student and its peers") :]
    rows = ["Student resnet width 8 depth 8 96.9 %", "Peer 1 vit width 64 95.8 %", "Peer 2 vit width 64 93.1 %"]
    assert sorted(rows, key=table.index) == rows
    assert f"They learned together. At the end the soft labels came from {who}." in table


@pytest.mark.parametrize(
    "sources",
    [
        {"transfer_set": {"kind": "real", "data": {"kind": "digits"}}},
        {"transfer_set": [{"kind": "real", "data": {"kind": "digits"}}]},
        {"generator": {"kind": "none"}},  # of an earlier version
    ],
)
def test_student_of_real_images_and_peers_has_no_teacher(tmp_path, sources):
    more = evaluated() | {"teacher": None, "ratio": {}, "real_images_used": 1294, "teachers": []}
    more["student"] = result_of_distill()["student"] | {"agreement": None}
    more["evaluations"]["transfer_efficiency"] = None
    more["cost"] = {"seconds": {"teacher": 0.0, "distill": 9.5}, "steps": 400}
    config = CONFIG | {"teacher": None} | sources
    text = report_of(tmp_path, more, config)
    assert (
        "The student learned from 1,294 labelled real images together with 2 peers and reaches 96.9 % accuracy" in text
    )
    assert "Stability 0.42 points" in text
    assert not [word for word in ("soft labels", "Agreement", "efficiency", "Alarms", "Teacher") if word in text]
    alone = report_of(tmp_path, more | {"peers": [network(0.9)], "real_images_used": None}, config)
    assert "The student learned from labelled real images together with 1 peer and reaches" in alone


def test_directory_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is not a run directory"):
        write_report(tmp_path)


def test_result_that_is_not_json_is_refused(tmp_path):
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"result\.json cannot be read"):
        write_report(tmp_path)


def test_formats():
    space = "\N{NO-BREAK SPACE}"
    assert percent(0.98611) == f"98.6{space}%"
    assert interval([0.971, 0.9941]) == f"97.1–99.4{space}%"
    assert count(78218) == "78,218"
    assert [size(n).replace(space, " ") for n in (999, 313_400, 4_200_000)] == ["999 bytes", "313 kB", "4.2 MB"]
    shown = [duration(seconds).replace(space, " ") for seconds in (3.21, 119.7, 3600, 7384)]
    assert shown == ["3.2 s", "2 min 0 s", "1 h 0 min", "2 h 3 min"]
    assert milliseconds(0.42131) == f"0.421{space}ms"
    for shown in (percent, interval, count, size, duration, milliseconds):
        assert {shown(None), shown("x"), shown(float("nan")), shown(True)} == {"not measured"}


def places(svg: str) -> tuple[list[str], list[float], list[float]]:
    """Labels of the ticks of accuracy; of the student the ends of the interval and the dot, in percent of the axis."""
    labels = [label.replace("\N{NO-BREAK SPACE}", " ") for label in re.findall(r">([^<]*%)</text>", svg)]
    grid = [float(x) for x in re.findall(r'<line x1="([^"]*)%"[^>]*var\(--grid\)', svg)]
    (interval,) = re.findall(r'<line x1="([^"]*)%" x2="([^"]*)%"[^>]*var\(--student\)', svg)
    (dot,) = re.findall(r'<circle cx="([^"]*)%"[^>]*var\(--student\)', svg)
    return labels, grid, [float(x) for x in (*interval, dot)]


def test_axis_of_intervals_has_round_ends_around_every_interval():
    result = result_of_distill()
    models = from_json(ModelResult, result["teacher"]), from_json(StudentResult, result["student"])
    labels, grid, student = places(interval_chart(*models))
    assert labels == [f"{percents}.0 %" for percents in range(94, 101)]
    assert grid == pytest.approx([100 * tick / 6 for tick in range(7)], abs=0.06)
    assert student == pytest.approx((10.3333, 71.3333, 49.0), abs=0.06)
    sure = ModelResult(1.0, (1.0, 1.0))
    assert places(interval_chart(sure, sure))[2] == pytest.approx([100.0] * 3)
    assert interval_chart(sure, ModelResult(0.9)) is None
    assert interval_chart(None, sure) is None


def test_grids_are_spread_from_first_to_last():
    items = [(step, Path(str(step))) for step in range(20)]
    assert [step for step, _ in spread(items, 6)] == [0, 4, 8, 11, 15, 19]
    assert spread(items[:3], 6) == items[:3]


def test_a_report_needs_no_matplotlib():
    modules = "synthkd.reports.report, synthkd.training.monitor, synthkd.training.display"
    code = f"import sys, {modules}; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: the report is not rendered")
def test_report_renders_in_a_browser(tmp_path):
    report = write_report(fake_run(tmp_path / "run"))
    picture = tmp_path / "page.png"
    subprocess.run(
        [CHROMIUM, *CHROMIUM_FLAGS, f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={picture}",
         "--window-size=1200,3000", report.as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    assert pixels.shape == (3000, 1200, 3)
    background = np.bincount(pixels.sum(2).ravel()).argmax()
    drawn = pixels.sum(2) != background
    assert 0.05 < drawn.mean() < 0.95
    # Every 500 pixels down the page there is something to see, and nothing runs over the right edge.
    assert all(band.any() for band in drawn.reshape(6, 500, 1200))
    assert not drawn[:, -20:].any()
