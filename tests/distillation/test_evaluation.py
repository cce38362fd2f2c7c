"""Looks at students: what is logged by hand, what follows from it, and what a run comes to."""

import io
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

import synthkd.distillation.control.capacity
from synthkd.distillation.control.capacity import AdaptiveWeights, StrengthController
from synthkd.distillation.control.controllers import Controllers
from synthkd.distillation.control.roles import Roles
from synthkd.distillation.control.selection import TeacherSelection
from synthkd.distillation.evaluation import HeldOut, PeriodicEvaluation
from synthkd.distillation.teachers import FrozenTeacher, TeacherTeam
from synthkd.metrics.transfer import GapCurve, fit_capacity_gap
from synthkd.models import Classifier
from synthkd.settings import (
    AdaptSettings,
    SelectionSettings,
    StrengthSettings,
    SwapSettings,
    TeamSettings,
    TemperatureSettings,
    WeightSettings,
)
from synthkd.types import ImageSpec, Stateful

SPEC = ImageSpec(1, 2, 2, 3)
ACCELERATOR = Accelerator(cpu=True)


class Said(nn.Module):
    """A student whose answer to image i, which holds the number i in its first pixel, is row i of a table."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table
        self.modes: list[bool] = []

    def forward(self, images: Tensor) -> Tensor:
        self.modes.append(self.training)
        return self.table[(images[:, 0, 0, 0] * 1000.0).round().long()]


def numbered(count: int) -> Tensor:
    images = torch.zeros(count, *SPEC.shape)
    images[:, 0, 0, 0] = torch.arange(count) / 1000.0
    return images


def answers(classes: Sequence[int], sure: float = 4.0) -> Tensor:
    """Logits for three classes, the same height for each image's class."""
    return sure * F.one_hot(torch.tensor(classes), 3).float()


def student_of(accuracy: float, labels: Tensor, sure: float = 4.0) -> Said:
    """A student that is right about the first share of the images and says the next class of the others."""
    right = round(accuracy * len(labels))
    return Said(answers([*labels[:right].tolist(), *((labels[right:] + 1) % 3).tolist()], sure))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


LABELS = torch.arange(20) % 3
TAUGHT = answers([*LABELS[:16].tolist(), *((LABELS[16:] + 2) % 3).tolist()], 3.0)
"""A teacher that is right about 16 of 20."""


def adapting(
    settings: AdaptSettings | None = None,
    students: Sequence[nn.Module] | None = None,
    held_out: HeldOut | None = None,
    **more: Any,
) -> PeriodicEvaluation:
    images = HeldOut(numbered(20), LABELS, TAUGHT) if held_out is None else held_out
    modules = [student_of(0.5, LABELS)] if students is None else students
    return evaluating(settings, lambda: modules, lambda: images, **more)


def evaluating(
    settings: AdaptSettings | None,
    students: Callable[[], Sequence[nn.Module]],
    held_out: Callable[[], HeldOut | None],
    roles: Roles | None = None,
    team: TeacherTeam | None = None,
    selection: TeacherSelection | None = None,
) -> PeriodicEvaluation:
    settings = settings or AdaptSettings()
    return PeriodicEvaluation(settings.every, students, held_out, Controllers(settings, roles, selection), team)


def test_what_is_logged_is_what_is_computed_by_hand() -> None:
    students = [student_of(0.5, LABELS), student_of(0.75, LABELS), student_of(0.2, LABELS)]
    evaluate = adapting(students=students)
    logged = evaluate(0)
    assert set(logged) == {
        "evaluation/accuracy", "evaluation/loss",
        "evaluation/accuracy of peer 1", "evaluation/accuracy of peer 2", "evaluation/transfer_efficiency",
    }  # fmt: skip
    assert [
        logged["evaluation/accuracy"],
        logged["evaluation/accuracy of peer 1"],
        logged["evaluation/accuracy of peer 2"],
    ] == (pytest.approx([0.5, 0.75, 0.2]))
    # right: -log(e^4 / (e^4 + 2)); wrong: -log(1 / (e^4 + 2))
    total = math.log(math.exp(4) + 2)
    assert logged["evaluation/loss"] == pytest.approx(0.5 * (total - 4) + 0.5 * total, rel=1e-5)
    joint = torch.zeros(3, 3, dtype=torch.float64)
    for theirs, ours in zip(TAUGHT.double().softmax(1), students[0].table.double().softmax(1), strict=True):
        joint += torch.outer(theirs, ours) / 20
    rows, columns = joint.sum(1, keepdim=True), joint.sum(0, keepdim=True)
    information = float((joint * (joint / (rows * columns)).log()).sum())
    assert logged["evaluation/transfer_efficiency"] == pytest.approx(information / -float((rows * rows.log()).sum()))


def test_students_are_asked_in_eval_mode_and_left_as_they_were() -> None:
    student = student_of(0.5, LABELS).train()
    adapting(students=[student])(0)
    assert student.modes == [False]
    assert student.training


def test_many_images_are_asked_about_in_parts_and_count_alike() -> None:
    labels = torch.arange(600) % 3
    student = student_of(0.9, labels)
    evaluate = adapting(students=[student], held_out=HeldOut(numbered(600), labels, None))
    assert evaluate(0)["evaluation/accuracy"] == pytest.approx(0.9)
    assert len(student.modes) == 3


def test_without_images_there_is_nothing_to_log_and_nothing_moves() -> None:
    settings = AdaptSettings(temperature=TemperatureSettings(), weights=WeightSettings(), strength=StrengthSettings())
    evaluate = evaluating(settings, lambda: [student_of(0.5, LABELS)], lambda: None)
    before = evaluate.state_dict()
    assert evaluate(0) == {}
    assert evaluate.state_dict() == before
    assert evaluate.outcome(["student"], []) == {
        "every": 100, "accuracy": None, "stability": None, "stability_of": 0, "transfer_efficiency": None,
    }  # fmt: skip


def test_without_a_teacher_there_is_no_efficiency_and_no_capacity() -> None:
    settings = AdaptSettings(weights=WeightSettings(), strength=StrengthSettings())
    evaluate = adapting(settings, held_out=HeldOut(numbered(20), LABELS, None))
    assert set(evaluate(0)) == {"evaluation/accuracy", "evaluation/loss"}


def test_where_the_answers_of_the_teacher_stand_for_labels_its_accuracy_is_one() -> None:
    settings = AdaptSettings(weights=WeightSettings(rate=1.0), strength=StrengthSettings())
    student = student_of(0.5, LABELS)
    annotated = adapting(settings, [student])
    stood_for = adapting(settings, [student], HeldOut(numbered(20), None, TAUGHT))
    first, second = annotated(1), stood_for(1)
    assert first["evaluation/accuracy"] == second["evaluation/accuracy"] == pytest.approx(0.5)
    assert first["adapt/gap"] == pytest.approx(1 - 0.5 / 0.8)
    alone = AdaptiveWeights(WeightSettings(rate=1.0))
    assert second["adapt/gap"] == pytest.approx(0.5)
    assert first["adapt/weight_of_answers"] == pytest.approx(alone.update(0.5, 0.8))
    alone = AdaptiveWeights(WeightSettings(rate=1.0))
    assert second["adapt/weight_of_answers"] == pytest.approx(alone.update(0.5, 1.0))


def test_a_teacher_that_is_never_right_has_no_capacity() -> None:
    settings = AdaptSettings(weights=WeightSettings(), strength=StrengthSettings())
    logged = adapting(settings, held_out=HeldOut(numbered(20), LABELS, answers(((LABELS + 1) % 3).tolist())))(0)
    assert not [name for name in logged if name.startswith("adapt/")]


def factors(evaluation: PeriodicEvaluation) -> list[float]:
    return [evaluation.controllers.factor(origin) for origin in ("logits", "features", "own")]


def test_the_factor_of_a_term_goes_by_where_it_comes_from() -> None:
    plain = adapting()
    plain(0)
    assert factors(plain) == [1.0, 1.0, 1.0]

    weighed = adapting(AdaptSettings(weights=WeightSettings(rate=1.0)))
    assert factors(weighed) == [1.0, 1.0, 1.0], "at the start"
    weighed(1)
    alpha = 1 / (1 + math.exp(-0.5 / 0.8 * 0.5))
    expected = [2 * alpha, 2 * (1 - alpha), 2 * (1 - alpha)]
    assert factors(weighed) == pytest.approx(expected)

    strong = adapting(AdaptSettings(strength=StrengthSettings(beta=2.0, threshold=0.1)))
    strong(0)
    gamma = 1.5 / (1 + math.exp(-2.0 * 0.5 / 0.8))
    assert factors(strong) == pytest.approx([gamma, gamma, 1.0])

    both = adapting(AdaptSettings(weights=WeightSettings(rate=1.0), strength=StrengthSettings(beta=2.0, threshold=0.1)))
    both(1)
    assert factors(both) == pytest.approx([gamma * 2 * alpha, gamma * 2 * (1 - alpha), 2 * (1 - alpha)])


def test_the_temperature_follows_the_loss() -> None:
    settings = AdaptSettings(temperature=TemperatureSettings())
    good, bad, middling = (
        student_of(accuracy, LABELS, sure) for accuracy, sure in ((1.0, 8.0), (0.0, 8.0), (1.0, 2.2))
    )
    evaluate = evaluating(settings, lambda: [students.pop(0)], lambda: HeldOut(numbered(20), LABELS, TAUGHT))
    students = [bad, bad, middling, good]
    values = [evaluate(step)["adapt/temperature"] for step in range(1, 5)]
    assert values == pytest.approx([5.5, 6.05, 6.05, 5.445])
    assert evaluate.controllers.temperature == values[-1]


def test_the_gap_is_fitted_from_the_fourth_look_on() -> None:
    accuracies = [0.2, 0.4, 0.5, 0.55, 0.6, 0.6]
    students: list[nn.Module] = [nn.Identity()]
    evaluate = adapting(AdaptSettings(strength=StrengthSettings()), students)
    fitted = []
    for number, accuracy in enumerate(accuracies):
        students[0] = student_of(accuracy, LABELS)
        logged = evaluate(100 * number)
        assert logged["adapt/gap"] == pytest.approx(1 - accuracy / 0.8)
        fitted.append("adapt/gap_fitted" in logged)
    assert fitted == [False, False, False, True, True, True]
    twin = StrengthController(StrengthSettings())
    for number, accuracy in enumerate(accuracies):
        twin.update(100 * number, accuracy, 0.8)
    assert evaluate.controllers.state_dict()["strength"]["value"] == pytest.approx(twin.value)


def test_roles_go_by_the_accuracies_of_all() -> None:
    roles = Roles(SwapSettings(), teaching=1)
    students = [student_of(0.5, LABELS), student_of(0.7, LABELS), student_of(0.6, LABELS)]
    evaluate = adapting(students=students, roles=roles)
    assert evaluate.controllers.teaching == 1
    assert evaluate(1)["adapt/teaching"] == 1.0
    students[2] = student_of(0.7, LABELS)
    assert evaluate(2)["adapt/teaching"] == 2.0
    assert evaluate.controllers.teaching == roles.teaching == 2
    assert evaluate.outcome(["student", "peer 1", "peer 2"], [])["teaching"] == "peer 2"
    assert adapting().controllers.teaching is None


def frozen(seed: int) -> FrozenTeacher:
    torch.manual_seed(seed)
    return FrozenTeacher(Classifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), SPEC), ACCELERATOR)


def choosing() -> tuple[TeacherTeam, TeacherSelection]:
    selection = TeacherSelection(3, SelectionSettings())
    return TeacherTeam([frozen(seed) for seed in range(3)], TeamSettings(weighting="selected"), selection), selection


def test_the_team_is_told_which_teacher_was_selected() -> None:
    team, selection = choosing()
    oracle = TeacherSelection(3, SelectionSettings())
    evaluate = adapting(team=team, selection=selection)
    theirs = torch.stack([teacher.logits(numbered(20)) for teacher in team._teachers]).double().log_softmax(2)
    ours = student_of(0.5, LABELS).table.double().log_softmax(1)
    divergences = (theirs.exp() * (theirs - ours)).sum(2).mean(1).tolist()
    seen = []
    for step in range(6):
        logged = evaluate(step)
        assert logged["adapt/selected_teacher"] == team.selected == oracle.choose(0.5, divergences, team.costs)
        assert logged["adapt/reward"] == pytest.approx(oracle.last, abs=1e-6)
        seen.append(team.selected)
    assert seen[:3] == [0, 1, 2], "each once first"
    assert evaluate.controllers.selected == evaluate.outcome(["student"], [])["selected"] == selection.counts
    assert adapting().controllers.selected is None


def everything() -> tuple[PeriodicEvaluation, list[Said], TeacherTeam]:
    team, selection = choosing()
    students = [student_of(0.2, LABELS), student_of(0.6, LABELS)]
    settings = AdaptSettings(temperature=TemperatureSettings(), weights=WeightSettings(), strength=StrengthSettings())
    roles = Roles(SwapSettings(), teaching=1)
    return adapting(settings, students, roles=roles, team=team, selection=selection), students, team


def test_a_state_goes_on_where_it_was_taken() -> None:
    whole, students, team = everything()
    assert isinstance(whole, Stateful)
    accuracies = [0.2, 0.4, 0.6, 0.6, 0.65, 0.7, 0.7, 0.75]
    for stop in (0, 3, 5):
        whole, students, team = everything()
        for step, accuracy in enumerate(accuracies[:stop]):
            students[0] = student_of(accuracy, LABELS)
            whole(step)
        resumed, others, other_team = everything()
        buffer = io.BytesIO()
        torch.save(whole.state_dict(), buffer)
        buffer.seek(0)
        resumed.load_state_dict(torch.load(buffer, weights_only=True))
        assert other_team.selected == team.selected
        assert resumed.controllers.teaching == whole.controllers.teaching
        outcome = whole.outcome(["student", "peer 1"], [])
        assert ("gap" in outcome) == (stop > 3)
        assert resumed.outcome(["student", "peer 1"], []) == outcome
        for step, accuracy in enumerate(accuracies[stop:], start=stop):
            students[0] = others[0] = student_of(accuracy, LABELS)
            assert resumed(step) == whole(step)


NAMES = ("adapt/temperature", "adapt/weight_of_answers", "adapt/teaching")
STARTS = [5.0, 0.5, 1.0]


def test_a_student_that_has_learned_nothing_moves_neither_temperature_nor_weights_nor_roles() -> None:
    """Two fresh networks, the learner the better by chance, and a loss that would raise the temperature."""
    evaluate, students, _ = everything()
    students[:] = [student_of(0.3, LABELS, sure=8.0), student_of(0.1, LABELS)]
    logged = evaluate(0)
    assert [logged[name] for name in NAMES] == STARTS, "they are logged all the same"
    assert logged["adapt/gap"] == pytest.approx(1 - 0.3 / 0.8)
    points = evaluate.controllers.state_dict()["strength"]["points"]
    assert [time for time, _ in points] == [0.0], "the curve has its first point"
    assert evaluate.controllers.selected == [1, 0, 0], "somebody has to teach"
    logged = evaluate(1)
    assert [logged[name] for name in NAMES] == pytest.approx([5.5, 0.5 + 0.5 * (sigmoid(0.5 * 0.3 / 0.8) - 0.5), 0.0])


def test_the_first_look_after_a_resume_is_none_at_a_student_that_has_learned_nothing() -> None:
    for stopped in (0, 100):
        whole, _, _ = everything()
        if stopped:
            whole(0)
        resumed, students, _ = everything()
        resumed.load_state_dict(whole.state_dict())
        students[:] = [student_of(0.3, LABELS, sure=8.0), student_of(0.1, LABELS)]
        logged = resumed(stopped)
        assert ([logged[name] for name in NAMES] == STARTS) == (stopped == 0)
        assert (logged["adapt/teaching"] == 0.0) == (stopped > 0)


def test_the_gap_is_fitted_once_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    fits = []

    def counted(times: Sequence[float], gaps: Sequence[float]) -> GapCurve:
        fits.append(len(times))
        return fit_capacity_gap(times, gaps)

    monkeypatch.setattr(synthkd.distillation.control.capacity, "fit_capacity_gap", counted)
    students: list[nn.Module] = [nn.Identity()]
    evaluate = adapting(AdaptSettings(strength=StrengthSettings()), students)
    for number, accuracy in enumerate([0.2, 0.4, 0.5, 0.55, 0.6]):
        students[0] = student_of(accuracy, LABELS)
        evaluate(10 * number)
    gap = evaluate.outcome(["student"], [])["gap"]
    assert fits == [4, 5]
    assert gap["n"] == 5


def rows(values: Sequence[float]) -> list[dict[str, Any]]:
    noise: list[dict[str, Any]] = [{"step": 1, "event": "phase begins"}, {"step": 1, "student/loss": 3.0}]
    return [*noise, *({"step": 10 * n, "evaluation/accuracy": value} for n, value in enumerate(values))]


def test_the_outcome_is_the_last_accuracy_and_its_deviation_over_the_last_looks() -> None:
    found = adapting(AdaptSettings(every=7)).outcome(["student"], rows([0.1, 0.9, 0.80, 0.82, 0.84, 0.80, 0.84]))
    assert found["every"] == 7
    assert found["accuracy"] == 0.84
    assert found["stability_of"] == 5
    assert found["stability"] == pytest.approx(math.sqrt((4 * 0.02**2) / 4))
    short = adapting().outcome(["student"], rows([0.1, 0.5]))
    assert (short["accuracy"], short["stability"], short["stability_of"]) == (0.5, None, 1)
    untaught = adapting().outcome(["student"], rows([0.1]))
    assert (untaught["accuracy"], untaught["stability"], untaught["stability_of"]) == (None, None, 0)


def test_the_outcome_holds_what_was_transferred_at_the_last_look() -> None:
    evaluate = adapting()
    logged = evaluate(0)
    efficiency = evaluate.outcome(["student"], [])["transfer_efficiency"]
    assert efficiency["value"] == logged["evaluation/transfer_efficiency"]
    assert (efficiency["estimator"], efficiency["n"]) == ("soft", 20)


@pytest.mark.parametrize("accuracies", [[0.2, 0.4, 0.5, 0.55, 0.6], [0.4] * 5, [0.2, 0.3, 0.4, 0.5, 0.6], [0.8] * 5])
def test_the_outcome_is_json_without_infinities(accuracies: list[float]) -> None:
    students: list[nn.Module] = [nn.Identity()]
    evaluate = adapting(AdaptSettings(strength=StrengthSettings(threshold=0.05)), students)
    for number, accuracy in enumerate(accuracies):
        assert "gap" not in evaluate.outcome(["student"], []) or number >= 4
        students[0] = student_of(accuracy, LABELS)
        evaluate(10 * number)
    found = evaluate.outcome(["student"], [])
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    gap = found["gap"]
    assert (gap["n"], gap["threshold"], len(gap["errors"])) == (5, 0.05, 3)
    points = evaluate.controllers.state_dict()["strength"]["points"]
    below = fit_capacity_gap(*zip(*points, strict=True)).below(0.05)
    assert gap["below_from_step"] == (below if math.isfinite(below) else None)
    if accuracies == [0.4] * 5:
        assert gap["errors"][:2] == [None, None]
        assert gap["below_from_step"] is None
    if accuracies == [0.8] * 5:
        assert gap["below_from_step"] == 0.0
