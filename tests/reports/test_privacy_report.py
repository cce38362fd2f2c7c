"""The page of a privacy report says what its JSON says: verdict, flow, bounds, reasons for gaps; and nothing else."""

import dataclasses
import functools
import itertools
import json
import math
import re
from pathlib import Path

import pytest
import torch
from test_report import SCRIPT, text_of

from synthkd.errors import CheckpointError
from synthkd.privacy.accounting import Epsilon
from synthkd.privacy.audit import AVERAGE_CASE, GIVEN, GROUPS, GroupAudit, audit_lists, audit_model
from synthkd.privacy.canaries import choose
from synthkd.privacy.copies import CopyTest, copy_test
from synthkd.privacy.dpsgd import Mechanism, statement
from synthkd.privacy.ledger import Ledger, PoissonSteps, Release
from synthkd.privacy.membership import Answers
from synthkd.privacy.ratio import tpr_ratio
from synthkd.privacy.report import FLOWS, Touch, plain, privacy_report
from synthkd.privacy.verdict import Check, Claim, verdict
from synthkd.reports.figures import HALF_BOX, PLACES, arrows, roc_chart
from synthkd.reports.privacy import groups, write_privacy_page
from synthkd.system.hardware import describe

PASSED = (
    Check("no image in two roles", True, "no canary is there again in another role"),
    Check("blind baseline", True, "without any model members are told from non-members with an AUC of 0.49"),
    Check("negative control", True, "a teacher that saw no canary shows an epsilon of at least 0.00"),
    Check("positive control", True, "an overfitted teacher shows an epsilon of at least 2.90 of 3.01 possible"),
)
CLASSES = 4
NAMES = {None: None, "plain": None, "dp_teacher": 8.0, "dp_generator": 1.0, "dp_both": 9.0}


@functools.cache
def audited(count: int = 600) -> dict:
    """An audit of simulated models: a teacher that remembers much, a student that remembers a third of it."""
    labels = torch.randint(CLASSES, (3 * count,), generator=torch.Generator().manual_seed(5))
    canaries = choose(labels, CLASSES, count, seed=1)
    populated = count >= 400

    def answers(remembered: float, seed: int, size: int, truth: torch.Tensor, known: torch.Tensor) -> Answers:
        rng = torch.Generator().manual_seed(seed)
        logits = torch.randn((3, size, CLASSES), generator=rng)
        logits[0, torch.arange(size), truth] += remembered * known
        return Answers(logits[0], logits[1:], truth)

    memory = canaries.included * (1.0 + canaries.mislabelled)
    models, scores = {}, {}
    for seed, (who, remembered) in enumerate({"teacher": 3.0, "student": 1.0}.items()):
        asked = answers(remembered, seed, count, canaries.labels, memory)
        outside = answers(0.0, 9 + seed, 1000, torch.arange(1000) % CLASSES, torch.zeros(1000)) if populated else None
        models[who] = audit_model(canaries, asked, outside, None, 1e-5)
        scores[who] = asked.target[torch.arange(count), canaries.labels]
    ratios = {}
    for group, member in zip(GROUPS, (~canaries.mislabelled, canaries.mislabelled), strict=True):
        sides = [scores[who][member & coin] for who in ("student", "teacher") for coin in coins(canaries.included)]
        ratios[group] = tpr_ratio(*sides) if len(sides[1]) >= 100 else None
    return {
        "canaries": count,
        "included": int(canaries.included.sum()),
        "references": {"teacher": 2, "student": 2},
        "population": 1000 if populated else 0,
        "models": models,
        "ratios": ratios,
    }


@functools.cache
def attacked(whos: tuple[str, ...] = ("teacher", "student"), references: int = 2, count: int = 600) -> dict:
    """An audit of given lists, of simulated models that remember members, the teacher more than the student."""
    labels, members = torch.arange(count) % CLASSES, torch.arange(count) < count // 2
    models, scores = {}, {}
    for seed, who in enumerate(whos):
        rng = torch.Generator().manual_seed(seed)
        logits = torch.randn((1 + references, count, CLASSES), generator=rng)
        logits[0, torch.arange(count), labels] += {"teacher": 3.0, "student": 1.0}[who] * members
        models[who] = {GIVEN: audit_lists(Answers(logits[0], logits[1:], labels), members, None, 1e-5)}
        scores[who] = logits[0, torch.arange(count), labels]
    sides = [scores[who][side] for who in ("student", "teacher") if len(whos) == 2 for side in (members, ~members)]
    return {
        "kind": GIVEN,
        "label": AVERAGE_CASE,
        "members": count // 2,
        "nonmembers": count // 2,
        "references": dict.fromkeys(whos, references),
        "population": 0,
        "skipped": {"members": 0},
        "missing": ("positive control: nothing is trained here", "negative control: needs reference models"),
        "models": models,
        "ratios": {GIVEN: tpr_ratio(*sides) if sides else None},
    }


def coins(included: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return included, ~included


@functools.cache
def copied() -> CopyTest:
    rng = torch.Generator().manual_seed(0)
    train, holdout, generated = (torch.rand((size, 16), generator=rng) for size in (300, 200, 150))
    generated[:10] = train[:10]
    return copy_test(train, holdout, generated, permutations=200)


def claimed(epsilon: float, test_seed: bool = False, charged: int = 1600) -> dict:
    mechanism = Mechanism(60000, 1024 / 60000, 0.9125, 0.5, 1500, 1e-5, test_seed)
    spent = Epsilon(epsilon, 1.25 * epsilon, 1e-5, "add_or_remove_one", "dp-accounting", "0.6.0")
    return statement(mechanism, Ledger((PoissonSteps(mechanism.sample_rate, 0.9125, charged),)), spent)


def content(
    flow: str | None = "plain",
    audit: dict | None = None,
    checks: tuple[Check, ...] = (),
    test_seed: bool = False,
    **changed,
) -> dict:
    epsilon = NAMES[flow]
    claims = () if epsilon is None else (claimed(epsilon, test_seed),)
    claim = None if epsilon is None else Claim(epsilon, 1e-5, "add_or_remove_one", "image", test_seed)
    halves = [half for model in (audit or {"models": {}})["models"].values() for half in model.values()]
    bounds = [half.one_run.epsilon for half in halves if half.one_run is not None]
    given = {
        "verdict": verdict(claim, bounds, checks),
        "flow": flow,
        "released": ["student: weights and description (safetensors, JSON)", "student: student.onnx"],
        "claims": claims,
        "audit": audit,
        "unaudited": "not asked for (audit is not set)",
        "checks": checks,
        "copies": {"pixels": copied()},
        "uncopied": "needs the private images and as many that were not trained on",
        "provenance": {
            "synthkd": "0.1.0",
            "config_sha256": "ab" * 32,
            "versions": {"torch": "2.15.0"},
            "hardware": describe(torch.device("cpu")),
        },
    }
    return privacy_report(**{**given, **changed})


def written(run: Path, report: dict) -> Path:
    run.mkdir(exist_ok=True)
    (run / "privacy_report.json").write_text(json.dumps(report, allow_nan=False))
    return write_privacy_page(run)


def in_order(text: str, *parts: str) -> None:
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_page_without_a_guarantee_says_so_first_and_has_no_statement_of_privacy(tmp_path):
    path = written(tmp_path, content("plain", audited(), PASSED))
    assert path == tmp_path / "privacy_report.html"
    text = text_of(path)
    in_order(
        text, "NO GUARANTEE (measured only)", "What is released", "What is not covered",
        "Every touch of private images", "Attacks 600 canaries", "Worst case: canaries with a wrong label",
        "Average case: canaries with their own label", "Without these checks the audit says nothing",
        "a copy detector, not privacy evidence", "Caveats", "Provenance",
    )  # fmt: skip
    assert "No mechanism bounds what the released files tell about a training image." in text
    assert "Differential privacy" not in text
    assert "Assumptions" not in text
    assert "is-invalid" not in re.sub(r"<style>.*?</style>", "", path.read_text(), flags=re.DOTALL)


def test_page_never_gives_a_good_mark(tmp_path):
    for flow in FLOWS:
        page = written(tmp_path, content(flow, audited(), PASSED)).read_text()
        body = page[page.index("<body>") :]
        assert not re.search(r"var\(--good\)|class=\"calm|[✓✔✅]", body)
        assert not re.search(r"\b(is|are|was) (private|anonymous|safe)\b|\b(anonymous|safe)\b", body)


def test_statement_of_differential_privacy_has_what_it_rests_on(tmp_path):
    text = text_of(written(tmp_path, content("dp_teacher", audited(), PASSED)))
    assert text.index("DP: epsilon=8, delta=1e-05") < text.index("Differential privacy")
    for part in (
        "Epsilon 8 by dp-accounting 0.6.0, privacy loss distributions", "Epsilon by RDP, for comparison 10",
        "Delta 1e-05", "1.7e-05", "Unit one image", "add or remove one image", "Private images (N) 60,000",
        "Poisson, sample rate 0.01707", "Steps charged 1,600 1,500 planned", "Noise multiplier 0.9125", "Clip 0.5",
        "Poisson steps: sample rate 0.0170667, noise multiplier 0.9125, steps 1600", "Arithmetic is floating point",
    ):  # fmt: skip
        assert part in text, part


def test_two_noisy_parts_have_a_statement_each_and_a_release_has_no_steps(tmp_path):
    steps, common = claimed(8.0), ("insecure", "epsilon_rdp", "delta", "accountant", "unit")
    release = {name: steps[name] for name in common} | {
        "epsilon": 1.0,
        "adjacency": "replace_one",
        "ledger": Ledger((Release(3.731),)).to_json(),
    }
    text = text_of(written(tmp_path, content("dp_both", claims=(steps, release))))
    first, second = text.split("Epsilon 1 by dp-accounting")
    assert "Steps charged 1,600" in first
    assert "replace one image" in second
    assert "Release: noise multiplier 3.731, adjacency replace one" in second
    assert "Steps charged" not in second
    assert "Clip" not in second


def test_noise_of_a_test_seed_is_no_differential_privacy(tmp_path):
    text = text_of(written(tmp_path, content("dp_teacher", audited(), PASSED, test_seed=True)))
    in_order(
        text,
        "NO GUARANTEE (measured only)",
        "NOT DP: the training looked like",
        "Differential privacy",
        "NOT DP The noise can",
    )
    assert "DP: epsilon" not in text


def test_invalid_audit_is_a_warning_with_its_reasons(tmp_path):
    failed = dataclasses.replace(PASSED[1], passed=False, found="an AUC of 0.71 without any model")
    path = written(tmp_path, content("dp_teacher", audited(), (PASSED[0], failed, *PASSED[2:])))
    text = text_of(path)
    in_order(text, "INVALID AUDIT (blind baseline: an AUC of 0.71 without any model)", "Blind baseline failed an AUC")
    assert "No image in two roles passed no canary" in text
    assert '<div class="verdict is-invalid' in path.read_text()


def test_claim_below_what_the_audit_shows_is_refuted(tmp_path):
    shown = max(half.one_run.epsilon for model in audited()["models"].values() for half in model.values())
    assert shown > NAMES["dp_generator"]
    text = text_of(written(tmp_path, content("dp_generator", audited(), PASSED)))
    assert f"INVALID AUDIT (claimed epsilon 1 is refuted: the audit shows at least {shown:.3g})" in text


def test_given_lists_are_one_group_in_the_place_of_two_halves(tmp_path):
    audit = attacked()
    path = written(tmp_path, content(None, audit, PASSED[1:2]))
    text = text_of(path)
    in_order(
        text, "NO GUARANTEE (measured only)", "Average-case, heuristic: not a bound. In the teacher",
        "What is released", "Not known: finished models were given, not how they were made.",
        "Attacks Average-case, heuristic: not a bound.",
        "300 images that the lists call members, 300 that they call non-members; 2 references of the teacher; "
        "2 references of the student; no images for RMIA.",
        "Average case: the lists as they were given", "By the headline attack", "Epsilon, heuristic estimate",
        "Without these checks", "Missing: positive control: nothing is trained here; negative control: needs reference",
        "Caveats Average-case, heuristic: not a bound.",
    )  # fmt: skip
    for absent in ("canar", "Bound of one run", "Guesses", "half", "Flow f", "None", "Undefined", "at least"):
        assert absent not in text, absent
    assert path.read_text().count("<svg") == 1, "curves, and no flow"
    for model in audit["models"].values():
        group = model[GIVEN]
        head = next(one for one in group.attacks if one.name == group.headline)
        assert f"an AUC of {head.auc.value:.3f} ({head.auc.low:.3f}–{head.auc.high:.3f}) and finds" in text
        assert f"class {head.worst_class.label} AUC {head.worst_class.auc.value:.3f}" in text
        for one in group.attacks:
            assert f"{one.auc.value:.3f} {one.auc.low:.3f}–{one.auc.high:.3f}" in text
            assert f"{one.epsilon:.2f} of {one.ceiling:.2f} possible" in text
    ratio = audit["ratios"][GIVEN]
    assert f"{ratio.value:.2f} × {ratio.low:.2f}–{ratio.high:.2f}, {ratio.method}" in text


def test_one_given_model_has_one_column_and_is_compared_with_nothing(tmp_path):
    path = written(tmp_path, content(None, attacked(("student",), 0, 80), PASSED))
    text, page = text_of(path), path.read_text()
    assert "0 references of the student;" in text
    assert "In the teacher" not in text
    assert "Student ÷ teacher" not in text
    assert "finds" not in text.partition("What is released")[0], "a rate that 40 non-members cannot show"
    row = re.search(r'<th scope="row">log-odds.*?</tr>', page, re.DOTALL)[0]
    assert row.count("<td") == 4
    assert "an error rate of 1.0% needs 100 non-members or more, got 40" in text
    assert "None" not in text


def test_invalid_audit_of_given_lists_keeps_the_label(tmp_path):
    failed = dataclasses.replace(PASSED[1], passed=False, found="an AUC of 0.71")
    text = text_of(written(tmp_path, content(None, attacked(), (failed,))))
    in_order(text, "INVALID AUDIT (blind baseline: an AUC of 0.71)", "Attacks Average-case, heuristic: not a bound.")


def test_every_number_of_the_tables_is_that_of_the_audit(tmp_path):
    audit = audited()
    text = text_of(written(tmp_path, content("plain", audit, PASSED))).replace("\N{NO-BREAK SPACE}", " ")
    worst, average = text.split("Average case: canaries with their own label")
    for group, part in (("mislabelled", worst), ("natural", average)):
        for model in audit["models"].values():
            half: GroupAudit = model[group]
            bound = half.one_run
            assert f"{bound.epsilon:.2f} of {bound.ceiling:.2f} possible" in part
            assert f"{bound.correct} of {bound.guesses} about {bound.m} canaries" in part
            for one in half.attacks:
                assert f"{one.auc.value:.3f} {one.auc.low:.3f}–{one.auc.high:.3f}" in part
                assert f"{one.epsilon:.2f} of {one.ceiling:.2f} possible" in part
                rate = one.tpr[0].rate
                assert f"{100 * rate.value:.1f} % {100 * rate.low:.1f}–{100 * rate.high:.1f} %" in part
            head = next(one for one in half.attacks if one.name == half.headline)
            assert f"class {head.worst_class.label} AUC {head.worst_class.auc.value:.3f}" in part
        ratio = audit["ratios"][group]
        assert f"{ratio.value:.2f} × {ratio.low:.2f}–{ratio.high:.2f}, {ratio.method}" in part
    assert "97.5 % delta 1e-05" in worst


def test_rows_have_the_teacher_left_of_the_student_and_the_headline_in_bold(tmp_path):
    audit = audited()
    page = written(tmp_path, content("plain", audit, PASSED)).read_text()
    table = page[page.index("TPR at 1 % FPR</th>") :]
    by_who = {who: model["mislabelled"] for who, model in audit["models"].items()}
    for place, name in enumerate(["log-odds", "calibrated", "LiRA", "RMIA"]):
        row = re.search(rf'<th scope="row">{name}.*?</tr>', table, re.DOTALL)[0]
        cells = re.findall(r'<td class="number">(.*?)</td>', row)
        assert len(cells) == 8
        for number, (who, half) in enumerate(by_who.items()):
            is_headline = half.headline == name
            assert f"{half.attacks[place].auc.value:.3f}<small>" in cells[number]
            assert cells[number].startswith("<b>") == is_headline
            assert (re.search(r"headline: ([a-z, ]*)", row) is not None and who in row) == is_headline


def test_gaps_have_their_reasons(tmp_path):
    text = text_of(written(tmp_path, content("plain", audited(120), PASSED, copies={})))
    for part in (
        "No rate (–): an error rate of 1.0% needs 100 non-members or more, got", "an error rate of 0.1% needs 1,000",
        "not measured needs 100 non-members or more, got", "RMIA was left out", "no images for RMIA",
        "Not measured: needs the private images and as many that were not trained on.",
    ):  # fmt: skip
        assert part in text, part
    assert text.count("an error rate of 0.1% needs 1,000 non-members") == 2
    assert "None" not in text
    assert "Undefined" not in text
    text = text_of(written(tmp_path, content("dp_teacher")))
    assert "Attacks Not measured: not asked for (audit is not set)." in text
    assert "Nothing was measured: without an audit" in text
    assert "checks" not in text


def test_ratio_without_an_end_and_class_too_small_to_judge_are_words(tmp_path):
    report = content("plain", audited(), PASSED)
    report["audit"]["ratios"]["natural"] |= {"value": None, "high": None}
    for one in report["audit"]["models"]["teacher"]["natural"]["attacks"]:
        one["worst_class"] = None
    text = text_of(written(tmp_path, report))
    low = report["audit"]["ratios"]["natural"]["low"]
    assert f"undefined: none found in the teacher {low:.2f} or more, " in text
    assert "none too few of each class to judge one" in text


def test_page_is_self_contained_and_names_no_file_of_the_run(tmp_path):
    page = written(tmp_path / "patients", content("dp_both", audited(), PASSED)).read_text()
    assert not re.search(r"https?:|//[a-z]|<script|<link|<img|@import|url\(|data:|href", page)
    assert str(tmp_path) not in page
    assert "patients" not in page
    assert not re.search(r"(?<![\w<])/(home|work|tmp|usr|root)\b", page)


def test_text_of_others_is_escaped(tmp_path):
    failed = Check(SCRIPT, False, SCRIPT)
    report = content("dp_teacher", audited(), (failed,), released=[f"student: {SCRIPT}"])
    report["dp"]["claims"][0]["unit"] = SCRIPT
    report["provenance"] |= {"hardware": {"cpu": SCRIPT}, SCRIPT: SCRIPT}
    report["unaudited"] = report["audit"]["models"]["teacher"]["natural"]["attacks"][0]["name"] = SCRIPT
    report["audit"]["models"]["teacher"]["natural"]["headline"] = SCRIPT
    page = written(tmp_path, report).read_text()
    assert "<script" not in page.lower()
    assert page.count("&lt;script&gt;") + page.count("&lt;Script&gt;") >= 9


def test_same_report_gives_the_same_bytes(tmp_path):
    report = content("plain", audited(), PASSED)
    first, second = (written(tmp_path / name, report).read_bytes() for name in ("one", "two"))
    assert first == second
    assert [path.name for path in (tmp_path / "one").iterdir() if path.suffix == ".tmp"] == []


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"schema": 99}'])
def test_what_is_no_report_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "privacy_report.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"privacy_report\.json cannot be shown .*run the job that made it again"):
        write_privacy_page(tmp_path)
    assert not (tmp_path / "privacy_report.html").exists()


@pytest.mark.parametrize("flow", list(FLOWS))
def test_flow_is_drawn_as_it_is_listed(tmp_path, flow):
    path = written(tmp_path, content(flow))
    drawing = re.search(r'<svg viewBox="0 0 400 292".*?</svg>', path.read_text(), re.DOTALL)[0]
    noisy = [touch.noisy for touch in FLOWS[flow]]
    assert drawing.count(">noise</text>") == noisy.count(True)
    assert drawing.count(">no noise</text>") == noisy.count(False) == (flow == "plain")
    assert drawing.count("<polygon") == len(noisy)
    assert drawing.count(">released</text>") == 1
    text = text_of(path)
    for touch in FLOWS[flow]:
        said = {True: "noise ", False: "no noise ", None: ""}[touch.noisy]
        assert f"{touch.source} → {touch.target} {said}{touch.how}" in text


def test_arrows_go_from_edge_to_edge_towards_the_target():
    across, down = arrows([Touch("teacher", "generator", "", None), Touch("generator", "student", "", None)])
    (left, y), (right, _) = PLACES["teacher"], PLACES["generator"]
    wide, high = HALF_BOX
    assert (across.start, across.length, across.angle) == ((left + wide, y), right - left - 2 * wide, 0.0)
    assert across.middle == (200, y)
    assert down.start[1] == pytest.approx(y + high)
    tip_x = down.start[0] + down.length * math.cos(math.radians(down.angle))
    tip_y = down.start[1] + down.length * math.sin(math.radians(down.angle))
    assert tip_y == pytest.approx(PLACES["student"][1] - high)
    assert PLACES["student"][0] < tip_x < right


def test_curves_stand_on_logarithmic_axes_from_one_image_with_zero_outside():
    svg = roc_chart({"teacher": [(0.0, 0.0), (0.0, 0.1), (0.1, 0.5), (1.0, 1.0)]}, 100)
    texts = [text.replace("\N{NO-BREAK SPACE}", " ") for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]
    assert texts == [*["0", "1/100", "10 %", "100 %"] * 2, "false-positive rate", "true-positive rate", "guessing"]
    columns = [float(x) for x in re.findall(r'<line x1="([^"]*)" x2="\1"', svg)]
    rows = [float(y) for y in re.findall(r'y1="([^"]*)" y2="\1"', svg)]
    (outside, left, middle, right), (below, bottom, tenth, top) = columns, rows
    assert (left, middle) == pytest.approx((outside + 32, (left + right) / 2), abs=0.1)
    assert (bottom, tenth) == pytest.approx((below - 32, (top + bottom) / 2), abs=0.1)
    half = top + (bottom - top) * math.log10(2) / 2
    curve, dots = re.findall(r'<path d="([^"]*)"', svg.partition("var(--teacher)")[2])
    points = [(outside, below), (outside, tenth), (middle, half), (right, top)]
    steps = [points[0], *(corner for before, at in itertools.pairwise(points) for corner in ((at[0], before[1]), at))]
    for path, expected in ((curve, steps), (dots, points)):
        found = [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path)]
        assert [number for point in found for number in point] == pytest.approx(
            [number for point in expected for number in point], abs=0.06
        )


def test_groups_have_the_worst_case_first_and_its_own_ratio():
    audit = plain(audited())
    worst, average = groups(audit)
    assert worst.audits["student"] == audit["models"]["student"]["mislabelled"]
    assert (worst.ratio, average.ratio) == (audit["ratios"]["mislabelled"], audit["ratios"]["natural"])
    assert list(worst.rows) == ["log-odds", "calibrated", "LiRA", "RMIA"]
    assert worst.headlines["teacher"]["name"] == audit["models"]["teacher"]["mislabelled"]["headline"]
    assert groups(None) == []
