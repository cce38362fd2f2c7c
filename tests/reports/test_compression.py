"""The page of a compress run holds the student against its teacher, each file against PyTorch, and says what is not."""

import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from test_report import SCRIPT, result_of_distill, text_of

from synthkd.compression.capacity import FisherTrace, capacity_bound
from synthkd.compression.pareto import Candidate, Front, Scores
from synthkd.compression.predict import Parity
from synthkd.metrics.utility import proportion
from synthkd.models.cost import Cost
from synthkd.models.energy import Energy
from synthkd.models.latency import Latency
from synthkd.pipelines.handover.search import Choice
from synthkd.privacy.verdict import Check, Claim, verdict
from synthkd.reports.compression import compression_page, exports, headline, nested
from synthkd.reports.files import read_run
from synthkd.reports.results import CompressResult, Handover, from_json, to_json
from synthkd.settings import ZooModel

PYTORCH = Latency(0.42, 0.40, 0.47, 1, 1, "cpu", 50)
UNCOUNTED = Energy(None, "not measured: /sys/class/powercap does not exist (not Linux, or a virtual machine)")
NO_GUARANTEE = verdict(None, [0.0], [])


def handed_over() -> dict:
    """As a student of a fifth of its teacher's size is handed over, with 359 test images and 1,000 synthetic ones."""
    right, after, agreed = asdict(proportion(348, 359)), asdict(proportion(345, 359)), proportion(990, 1000)
    onnx, int8 = replace(PYTORCH, median_ms=0.1, low_ms=0.09, high_ms=0.12), Latency(0.06, 0.055, 0.08, 1, 1, "cpu", 50)
    return {
        "cost": {
            "teacher": asdict(Cost(77754, 313776, 2480640, Latency(1.26, 1.2, 1.4, 1, 1, "cpu", 50), UNCOUNTED)),
            "student": asdict(Cost(15166, 61360, 402432, PYTORCH, UNCOUNTED)),
        },
        "student": {"accuracy": right},
        "files": {
            "onnx": {
                "file": "student.onnx", "bytes": 62000, "parity": asdict(Parity(3.1e-6, proportion(1000, 1000))),
                "latency": asdict(onnx), "accuracy": right,
            },
            "int8": {
                "file": "student.int8.onnx", "bytes": 15500, "parity": asdict(Parity(0.314, agreed)),
                "latency": asdict(int8), "accuracy": after,
            },
            "program": {"file": "student.pt2", "bytes": 124000},
        },
    }  # fmt: skip


def rules_of_thumb() -> dict:
    teacher, student = FisherTrace(12.3, 1.1, 200), FisherTrace(4.5, 0.3, 200)
    return {
        "n": 1000,
        "fisher_n": 200,
        "teacher": {"fisher_trace": asdict(teacher), "feature_dimension": 41},
        "student": {"fisher_trace": asdict(student), "feature_dimension": 17},
        "bound": asdict(capacity_bound(2.2, 0.1, 0.05)),
    }


def finished() -> dict:
    return {
        **result_of_distill(),
        "job": "compress",
        "verdict": asdict(NO_GUARANTEE),
        "handover": handed_over(),
        "search": None,
        "capacity": rules_of_thumb(),
        "cost": {"seconds": {"flow": 76.2, "export": 8.31, "audit": 190.0}, "peak_memory_bytes": 812_000_000},
    }


def written(run: Path, result: dict) -> Path:
    run.mkdir(exist_ok=True)
    (run / "config.yaml").write_text("name: digits\nflow: plain\n")
    typed = from_json(CompressResult, result)
    (run / "report.html").write_bytes(compression_page(replace(read_run(run), result=typed), typed))
    return run / "report.html"


def without_tests(result: dict) -> dict:
    for who in ("teacher", "student"):
        result[who] |= {"accuracy": None, "accuracy_interval": None, "n": None}
    del result["ratio"]["accuracy"]
    result["handover"]["student"]["accuracy"] = None
    for kind in ("onnx", "int8"):
        result["handover"]["files"][kind]["accuracy"] = None
    return result


def test_page_tells_the_outcome_and_then_what_it_rests_on(tmp_path):
    path = written(tmp_path, finished())
    assert path == tmp_path / "report.html"
    text = text_of(path)
    order = [
        "The student has 19.5 % of its teacher’s parameters, is 3.0 times as fast, and gets 96.9 % of test images "
        "right; its teacher 98.6 %.",
        "NO GUARANTEE (measured only)", "Read the privacy report", "Teacher and student", "Exported files", "Cost",
        "Hardware", "Configuration",
    ]  # fmt: skip
    assert sorted(order, key=text.index) == order
    for part in (
        "Parameters 77,754 15,166 0.195 ×", "Size of the weights 314 kB 61.4 kB 0.196 ×",
        "Multiply-accumulates of one image 2,480,640 402,432 0.162 ×", "95 % interval 94.6–98.3 %, n = 360",
        "1.26 ms 1.2–1.4 ms, 1 thread 0.42 ms 0.4–0.47 ms, 1 thread 0.333 ×",
        "Energy of one image not measured /sys/class/powercap does not exist (not Linux, or a virtual machine)",
        "a batch of 1 on cpu, 50 calls", "Flow 1 min 16 s Export 8.3 s Audit 3 min 10 s Total time 4 min 35 s",
        "Peak memory 812 MB", "AMD EPYC 7B13", "flow: plain", "on 1,000 synthetic images",
    ):  # fmt: skip
        assert part in text, part
    assert '<a href="privacy_report.html">' in path.read_text()


def test_each_file_is_held_against_float32_and_pytorch(tmp_path):
    text = text_of(written(tmp_path, finished()))
    int8 = (
        "student.int8.onnx ONNX, int8 15,500 4 × 0.06 ms 0.055–0.08 ms, 1 thread 7 × 96.1 % 93.6–97.7 % -0.8 points "
        "99.0 % 98.2–99.5 % 0.31"
    )
    assert int8 in text
    assert "student.onnx ONNX, float32 62,000 1 × 0.1 ms 0.09–0.12 ms, 1 thread 4.2 ×" in text
    assert "+0.0 points 100.0 % 99.6–100.0 % 3.1e-06" in text
    assert "student.pt2 torch.export program 124,000 0.5 × not measured not measured not measured" in text
    assert "PyTorch: 96.9 %" in text


def test_latencies_of_other_threads_or_devices_are_not_compared():
    handover = handed_over()
    handover["files"]["onnx"]["latency"]["threads"] = 2
    handover["files"]["int8"]["latency"] |= {"device": "gpu", "batch_size": 8}
    onnx, int8, program = exports(from_json(Handover, handover))
    assert (onnx.faster, onnx.unlike) == (None, "not compared: other threads")
    assert (int8.faster, int8.unlike) == (None, "not compared: other device, batch size")
    assert (program.faster, program.unlike) == (None, "not measured")


def test_without_the_float32_file_nothing_is_called_smaller(tmp_path):
    result = finished()
    del result["handover"]["files"]["onnx"]
    assert [export.smaller for export in exports(from_json(Handover, result["handover"]))] == [None, None]
    assert "15,500 not exported" in text_of(written(tmp_path, result))


def test_without_test_data_the_accuracy_is_not_measured(tmp_path):
    text = text_of(written(tmp_path, without_tests(finished())))
    assert "parameters and is 3.0 times as fast; its accuracy was not measured." in text
    assert "Test accuracy not measured no test data" in text
    assert "PyTorch: not measured" in text
    assert "points" not in text
    assert "None" not in text


def test_nothing_exported_is_said(tmp_path):
    result = finished()
    result["handover"]["files"] = {}
    text = text_of(written(tmp_path, result))
    assert "Exported files None was asked for." in text
    assert "Same class and logits" not in text


def test_energy_is_shown_with_its_counter(tmp_path):
    result = finished()
    for who, joules in (("teacher", 0.02), ("student", 0.005)):
        result["handover"]["cost"][who]["energy"] = asdict(Energy(joules, "RAPL counter of package-0"))
    text = text_of(written(tmp_path, result)).replace("\N{NO-BREAK SPACE}", " ")
    assert "0.02 J RAPL counter of package-0 0.005 J RAPL counter of package-0 0.25 ×" in text


@pytest.mark.parametrize(
    ("found", "text", "warns"),
    [
        (NO_GUARANTEE, "NO GUARANTEE (measured only)", False),
        (
            verdict(Claim(3.0, 1e-5, "add_or_remove_one", "image", False), [1.2], []),
            "DP: epsilon=3, delta=1e-05",
            False,
        ),
        (verdict(None, [], [Check("blind baseline", False, "an AUC of 0.7")]), "INVALID AUDIT (blind baseline:", True),
    ],
)
def test_verdict_is_exact_and_only_an_invalid_one_is_coloured(tmp_path, found, text, warns):
    path = written(tmp_path, finished() | {"verdict": asdict(found)})
    assert text in text_of(path)
    body = path.read_text().split("<body>")[1]
    assert ("is-invalid" in body) == warns
    assert not re.search(r"var\(--good\)|class=\"calm|[✓✔✅]", body)


def test_reports_of_runs_inside_are_linked_where_they_exist(tmp_path):
    names = ["audit/reference-0/teach", "distill", "audit/audited/distill", "teach", "audit/control"]
    for name in names:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "report.html").write_text("")
    (tmp_path / "audit/reference-0/distill").mkdir()
    (tmp_path / "report.html").write_text("")
    order = ["teach", "distill", "audit/audited/distill", "audit/control", "audit/reference-0/teach"]
    assert [address for _, address in nested(tmp_path)] == [f"{name}/report.html" for name in order]
    page = written(tmp_path, finished()).read_text()
    links = re.findall(r'href="([^"]*)"', page)
    assert links == ["privacy_report.html", *(f"{name}/report.html" for name in order)]
    assert all((tmp_path / link).exists() for link in links[1:])
    assert "Runs inside this one" not in text_of(written(tmp_path / "alone", finished()))


def test_page_is_self_contained_and_always_the_same(tmp_path):
    first, second = (written(tmp_path / name, finished()) for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()
    page = first.read_text()
    assert not re.search(r"https?:|//[a-z]|<script|<link|<img|@import|url\(", page)
    assert str(tmp_path) not in page
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["config.yaml", "report.html"]


def test_text_of_others_is_escaped(tmp_path):
    result = finished() | {
        "name": SCRIPT,
        "version": SCRIPT,
        "verdict": {"kind": "x", "text": SCRIPT, "detail": SCRIPT},
    }
    result["data"] = {"class_names": [SCRIPT, "b"], "spec": SCRIPT}
    result["teacher"]["arch"] = result["student"]["agreement_on"] = result["hardware"]["cpu"] = SCRIPT
    result["handover"]["files"]["int8"]["file"] = SCRIPT
    result["handover"]["cost"]["student"]["energy"]["source"] = SCRIPT
    inside = tmp_path / SCRIPT.replace("/", "")
    inside.mkdir()
    (inside / "report.html").write_text("")
    page = written(tmp_path, result).read_text()
    assert "<script" not in page.lower()
    assert page.count("&lt;script&gt;") >= 11


def test_rules_of_thumb_are_shown_as_such(tmp_path):
    result = finished()
    text = text_of(written(tmp_path, result))
    assert (
        "Trace of the Fisher information on 200 synthetic images 12.3 standard error 1.1 4.5 standard error 0.3" in text
    )
    assert "Dimension of the features for 95 % of their variance, on 1,000 41 17" in text
    assert "Least capacity at a tolerated error of 0.1, without a unit 4.4e+03" in text
    result["capacity"]["bound"]["value"] = None
    assert "without a unit unbounded" in text_of(written(tmp_path, result))


def test_a_search_is_shown_with_the_chosen_student(tmp_path):
    small, large = ZooModel(arch="mlp", width=16, depth=1), ZooModel(arch="convnet", width=9)
    found = Front(
        (Candidate(small, Scores(0.61, 0.05, 4800)), Candidate(large, Scores(0.92, 0.5, 36_000))),
        ("error", "latency", "bytes"),
        (1.0, 1.0, 1e5),
    )
    page = written(tmp_path, finished() | {"search": to_json(Choice(large, found).result())})
    text = text_of(page)
    assert "1 convnet 9 chosen 92.0 % 0.5 ms 36 kB 2 mlp 16, depth 1 61.0 % 0.05 ms 4.8 kB" in text
    assert "Of 2 candidates, those that no other beats in error, latency, bytes at once" in text
    assert "<svg" in page.read_text()


def test_headline_does_not_hide_a_student_that_is_slower():
    result = finished()
    result["handover"]["cost"]["student"]["latency"]["median_ms"] = 2.52
    assert "is 0.5 times as fast" in headline(from_json(CompressResult, result))
